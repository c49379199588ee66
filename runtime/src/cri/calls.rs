//! What every call gets, whichever it is: its client's deadline, an end with the daemon, a span for the log and for traces, a place in the figures.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{HeaderMap, Request, Response};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};
use tower::Service;
use tracing::{Instrument, Span, field::Empty};

use crate::observe::{metrics::Metrics, traces};

/// Serves requests by `inner`, and does here what all have in common. Calls that are under way when `end` comes are broken off.
pub(super) fn around<S>(
    inner: S,
    metrics: Arc<Metrics>,
    end: CancellationToken,
) -> impl Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
+ Clone
+ Send
+ 'static
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible, Future: Send>
        + Clone
        + Send
        + 'static,
{
    tower::service_fn(move |request: Request<Body>| {
        let (inner, metrics, end) = (inner.clone(), Arc::clone(&metrics), end.clone());
        // Made here and not in the future: so it is over before the transport's own, which begins later and would answer
        // Cancelled, a code that says that the client did it.
        let deadline = timeout(request.headers()).map(|time| (time, tokio::time::sleep(time)));
        let call = request
            .uri()
            .path()
            .rsplit('/')
            .next()
            .unwrap_or_default()
            .to_owned();
        let span = tracing::info_span!(
            "call",
            rpc = call,
            pod = Empty,
            container = Empty,
            otel.name = call,
            otel.kind = "server",
            otel.status_code = Empty,
        );
        traces::follow(&span, request.headers());
        answered(inner, request, call, deadline, end, metrics).instrument(span)
    })
}

async fn answered<S>(
    mut inner: S,
    request: Request<Body>,
    call: String,
    deadline: Option<(Duration, tokio::time::Sleep)>,
    end: CancellationToken,
    metrics: Arc<Metrics>,
) -> Result<Response<Body>, Infallible>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    let timer = metrics.call(&call);
    let answer = inner.call(request);
    let late = async {
        match deadline {
            Some((time, over)) => {
                over.await;
                late(&call, time)
            }
            None => std::future::pending().await,
        }
    };
    let response = tokio::select! {
        biased;
        response = answer => response?,
        status = late => status.into_http(),
        () = end.cancelled() => broken_off(&call).into_http(),
    };
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    if code != Code::Ok {
        Span::current().record("otel.status_code", "ERROR");
    }
    let elapsed = timer.answered(code);
    tracing::debug!(?elapsed, ?code, "answered");
    Ok(response)
}

fn late(call: &str, time: Duration) -> Status {
    Status::deadline_exceeded(format!(
        "{call} was not done within the {time:?} that its client gave it; give it more (crictl --timeout, the kubelet's runtimeRequestTimeout)"
    ))
}

fn broken_off(call: &str) -> Status {
    Status::unavailable(format!(
        "{call} was broken off because the daemon ends; call again when it is back"
    ))
}

/// The time that the client gives the call ("Timeout" in the protocol of gRPC over HTTP/2). One that cannot be read is none.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `around` answers to a request with this timeout, when the call itself takes a second.
    async fn answer_of_a_second(timeout: &'static str, metrics: &Arc<Metrics>) -> Status {
        let second = tower::service_fn(async |_: Request<Body>| {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Ok(Status::ok("").into_http())
        });
        let request = Request::builder()
            .uri("http://localhost/runtime.v1.RuntimeService/Version")
            .header("grpc-timeout", timeout)
            .body(Body::empty())
            .unwrap();
        let mut around = around(second, Arc::clone(metrics), CancellationToken::new());
        let response = around.call(request).await.unwrap();
        Status::from_header_map(response.headers()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_takes_longer_than_its_client_allows_is_told_so() {
        let metrics = Arc::new(Metrics::default());
        let late = answer_of_a_second("300m", &metrics).await;
        assert_eq!(late.code(), Code::DeadlineExceeded);
        assert!(
            late.message()
                .starts_with("Version was not done within the 300ms"),
            "{late:?}"
        );
        assert_eq!(answer_of_a_second("2S", &metrics).await.code(), Code::Ok);
        let text = metrics.text();
        for (code, bucket) in [("DeadlineExceeded", "0.512"), ("Ok", "1.024")] {
            let sample = format!("_bucket{{le=\"{bucket}\",call=\"Version\",code=\"{code}\"}} 1\n");
            assert!(text.contains(&sample), "no {sample} in {text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_whose_client_goes_away_is_counted_as_cancelled() {
        let metrics = Arc::new(Metrics::default());
        let call = answer_of_a_second("2S", &metrics);
        tokio::time::timeout(Duration::from_millis(100), call)
            .await
            .unwrap_err();
        assert!(
            metrics
                .text()
                .contains("_count{call=\"Version\",code=\"Cancelled\"} 1\n")
        );
    }

    fn timeout_of(text: &str) -> Option<Duration> {
        timeout(&HeaderMap::from_iter([(
            http::HeaderName::from_static("grpc-timeout"),
            text.parse().unwrap(),
        )]))
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        assert_eq!(timeout_of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(timeout_of("99999999H"), Some(Duration::from_hours(99_999_999)));
        assert_eq!(timeout_of("1999855u"), Some(Duration::from_micros(1_999_855)));
        for bad in ["", "S", "2", "2s", "-1S", "+1S", "123456789S", "2 S"] {
            assert_eq!(timeout_of(bad), None, "{bad:?}");
        }
    }
}
