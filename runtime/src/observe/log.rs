//! The daemon's log on standard error: lines for people or JSON for programs, each with the call, the pod and the container
//! that it is about.

use std::fmt::Debug;

use tracing::{
    field::{Field, Visit},
    span::Record,
};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    field::RecordFields,
    filter::{LevelFilter, ParseError, Targets},
    fmt::{
        self, FormatFields, FormattedFields, MakeWriter,
        format::{DefaultFields, Writer},
    },
    layer::SubscriberExt,
    util::SubscriberInitExt,
};

use super::traces::{Traces, TracesError};
use crate::config::{Config, LogConfig, LogFormat};

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directives.
    #[error("`log.level`: {0}")]
    Level(#[from] ParseError),
    /// The collector of traces.
    #[error(transparent)]
    Traces(#[from] TracesError),
}

/// Starts the log, and traces where the configuration has them. Once, in a tokio runtime with several threads.
///
/// # Errors
///
/// [`LogError`].
pub fn start(config: &Config) -> Result<Option<Traces>, LogError> {
    let traces = Traces::start(&config.traces)?;
    let spans = traces.as_ref().map(|traces| {
        // Whatever the log shows; the libraries' own spans, some of which come from sending traces, are not.
        let ours = Targets::new().with_target("bulkhead_runtime", LevelFilter::INFO);
        traces.layer().with_filter(ours)
    });
    Registry::default()
        .with(lines(&config.log, std::io::stderr)?)
        .with(spans)
        .init();
    Ok(traces)
}

fn lines<W>(config: &LogConfig, writer: W) -> Result<impl Layer<Registry> + use<W>, ParseError>
where
    W: for<'writer> MakeWriter<'writer> + Send + Sync + 'static,
{
    let filter = EnvFilter::builder().parse(&config.level)?;
    let lines = fmt::layer().with_writer(writer);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(false).fmt_fields(ForPeople).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    Ok(lines.with_filter(filter))
}

/// Of a call, people are shown its name: what happens in it says which pod and container it is about. All of it is in JSON.
#[derive(Debug)]
struct ForPeople;

impl<'writer> FormatFields<'writer> for ForPeople {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> std::fmt::Result {
        let mut call = Call::default();
        fields.record(&mut call);
        if call.is_one {
            return call.name.map_or(Ok(()), |name| writer.write_str(&name));
        }
        DefaultFields::new().format_fields(writer, fields)
    }

    /// Only calls learn of fields later.
    fn add_fields(
        &self,
        _current: &'writer mut FormattedFields<Self>,
        _fields: &Record<'_>,
    ) -> std::fmt::Result {
        Ok(())
    }
}

/// The fields of the span around a call, if they are.
#[derive(Debug, Default)]
struct Call {
    is_one: bool,
    name: Option<String>,
}

impl Visit for Call {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "rpc" => {
                self.is_one = true;
                self.name = Some(format!("{value:?}").trim_matches('"').to_owned());
            }
            name => self.is_one |= name.starts_with("otel."),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use tracing::field::Empty;

    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// What is written of something that happens in a call.
    fn written(format: LogFormat) -> String {
        let written = Written::default();
        let config = LogConfig {
            format,
            ..LogConfig::default()
        };
        let writer = written.clone();
        let lines = lines(&config, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(Registry::default().with(lines), || {
            let span = tracing::info_span!("call", rpc = "RunPodSandbox", pod = Empty, otel.kind = "server");
            let _entered = span.enter();
            span.record("pod", "p1");
            tracing::warn!(pod = "p1", count = 2, "it is slow");
        });
        let bytes = written.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn people_are_shown_the_call_and_programs_all() {
        let line = written(LogFormat::Text);
        let (_, line) = line.split_once(' ').unwrap();
        let target = module_path!();
        assert_eq!(
            line,
            format!(" WARN call{{RunPodSandbox}}: {target}: it is slow pod=\"p1\" count=2\n")
        );
        let line: serde_json::Value = serde_json::from_str(&written(LogFormat::Json)).unwrap();
        assert_eq!(line["message"], "it is slow");
        assert_eq!(
            (&line["span"]["rpc"], &line["span"]["pod"]),
            (&"RunPodSandbox".into(), &"p1".into())
        );
    }
}
