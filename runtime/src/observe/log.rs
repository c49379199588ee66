//! The daemon's log on standard error: lines for people or JSON for programs, each with the call, the pod and the container
//! that it is about.

use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{LevelFilter, ParseError, Targets},
    fmt,
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
    Registry::default().with(lines(&config.log)?).with(spans).init();
    Ok(traces)
}

fn lines(config: &LogConfig) -> Result<impl Layer<Registry> + use<>, ParseError> {
    let filter = EnvFilter::builder().parse(&config.level)?;
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match config.format {
        LogFormat::Text => lines.with_ansi(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).with_span_list(false).boxed(),
    };
    Ok(lines.with_filter(filter))
}
