//! Traces of calls in the format and over the protocol of OpenTelemetry (OTLP over gRPC).
//!
//! Each call of CRI is a span, a part of the caller's trace where it sends one along (the kubelet does), with a span below
//! it for each phase of a pod's start.

use http::HeaderMap;
use opentelemetry::{
    KeyValue,
    propagation::{Extractor, TextMapPropagator},
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{Sampler, SdkTracerProvider},
};
use tracing::{Span, Subscriber};
use tracing_opentelemetry::OpenTelemetrySpanExt;
use tracing_subscriber::{Layer, registry::LookupSpan};

use crate::config::TracesConfig;

/// Traces cannot be sent.
#[derive(Debug, thiserror::Error)]
#[error(
    "`traces.endpoint` {endpoint:?} cannot be used: {reason}; it is the URL of a collector that takes OTLP over gRPC, such as \"http://localhost:4317\""
)]
pub struct TracesError {
    endpoint: String,
    reason: String,
}

/// Sends spans away. What is not sent yet is sent when it is closed.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Spans go where `config` says. `None` when it says nothing. Must be called in a tokio runtime with several threads.
    ///
    /// # Errors
    ///
    /// [`TracesError`].
    pub(super) fn start(config: &TracesConfig) -> Result<Option<Self>, TracesError> {
        if config.endpoint.is_empty() {
            return Ok(None);
        }
        let exporter = SpanExporter::builder()
            .with_tonic()
            .with_endpoint(&config.endpoint)
            .build()
            .map_err(|error| TracesError {
                endpoint: config.endpoint.clone(),
                reason: error.to_string(),
            })?;
        let resource = Resource::builder()
            .with_service_name("bulkheadd")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .build();
        // A caller that has decided whether to trace is followed.
        let sampler = Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(config.sample_ratio)));
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_resource(resource)
            .with_sampler(sampler)
            .build();
        Ok(Some(Self(provider)))
    }

    /// Makes spans of the program such of a trace.
    pub(super) fn layer<S>(&self) -> impl Layer<S>
    where
        S: Subscriber + for<'span> LookupSpan<'span>,
    {
        tracing_opentelemetry::layer()
            .with_tracer(self.0.tracer("bulkheadd"))
            .with_location(false)
            .with_threads(false)
    }

    /// Sends what is left. Blocks, for some seconds when the collector does not answer.
    pub fn close(self) {
        if let Err(error) = self.0.shutdown() {
            tracing::warn!(%error, "the last traces could not be sent");
        }
    }
}

/// Makes `span` a part of the trace that a request's headers name (W3C Trace Context), if they do.
pub(crate) fn follow(span: &Span, headers: &HeaderMap) {
    let caller = TraceContextPropagator::new().extract(&Headers(headers));
    if caller.span().span_context().is_valid() {
        // Without a collector there is nobody to tell.
        let _ = span.set_parent(caller);
    }
}

struct Headers<'a>(&'a HeaderMap);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        self.0.get(key)?.to_str().ok()
    }

    fn keys(&self) -> Vec<&str> {
        self.0.keys().map(http::HeaderName::as_str).collect()
    }
}
