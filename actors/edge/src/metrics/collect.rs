//! How the counters are shown.

use std::{fmt, sync::atomic::Ordering::Relaxed};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Unit,
};

use super::{BUCKETS, Counters, Failure, METHODS, MethodClass, STATUSES, Spoken, VERSIONS};
use crate::{Reason, Version};

type Label = (&'static str, &'static str);

impl Collector for Counters {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        self.requests(&mut encoder)?;
        self.durations(&mut encoder)?;
        for (name, help, kind, value) in BY_VERSION {
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for (version, spoken) in Version::ALL.iter().zip(&self.spoken) {
                let labels = [("version", version.as_str())];
                show(&mut family.encode_family(&labels)?, value(spoken))?;
            }
        }
        self.refused(&mut encoder)?;
        let help = "Credentials that proved nobody, and requests that came without one";
        let mut family = encoder.encode_descriptor("horos_authentication_failures", help, None, MetricType::Counter)?;
        for (kind, count) in Failure::ALL.iter().zip(&self.failures) {
            let labels = [("kind", kind.as_str())];
            show(&mut family.encode_family(&labels)?, Value::Counter(count.load(Relaxed)))?;
        }
        let help = "TLS handshakes in progress over TCP";
        let mut metric = encoder.encode_descriptor("horos_tls_handshakes_in_progress", help, None, MetricType::Gauge)?;
        show(&mut metric, Value::Gauge(self.handshakes_in_progress.load(Relaxed)))?;
        let help = "TLS handshakes that succeeded over TCP";
        let mut metric = encoder.encode_descriptor("horos_tls_handshakes", help, None, MetricType::Counter)?;
        show(&mut metric, Value::Counter(self.handshakes.load(Relaxed)))?;
        let help = "Time that TLS handshakes over TCP took together";
        let unit = Unit::Seconds;
        let mut metric = encoder.encode_descriptor("horos_tls_handshake_time", help, Some(&unit), MetricType::Counter)?;
        metric.encode_counter::<NoLabelSet, f64, f64>(&seconds(self.handshake_micros.load(Relaxed)), None)
    }
}

enum Value {
    Counter(u64),
    Gauge(i64),
}

type ByVersion = (&'static str, &'static str, MetricType, fn(&Spoken) -> Value);

const BY_VERSION: [ByVersion; 6] = [
    ("horos_http_requests_in_flight", "Requests that wait for their answer", MetricType::Gauge, |spoken| {
        Value::Gauge(spoken.requests_in_flight.load(Relaxed))
    }),
    ("horos_http_requests_cancelled", "Requests whose client left before the answer", MetricType::Counter, |spoken| {
        Value::Counter(spoken.cancelled.load(Relaxed))
    }),
    ("horos_http_request_body_bytes", "Bytes of requests' bodies", MetricType::Counter, |spoken| {
        Value::Counter(spoken.request_bytes.load(Relaxed))
    }),
    ("horos_http_response_body_bytes", "Bytes of answers' bodies, before compression", MetricType::Counter, |spoken| {
        Value::Counter(spoken.response_bytes.load(Relaxed))
    }),
    ("horos_connections_open", "Connections that are open", MetricType::Gauge, |spoken| {
        Value::Gauge(spoken.connections_open.load(Relaxed))
    }),
    ("horos_connections", "Connections that were opened", MetricType::Counter, |spoken| Value::Counter(spoken.connections.load(Relaxed))),
];

fn show(metric: &mut MetricEncoder<'_>, value: Value) -> fmt::Result {
    match value {
        Value::Counter(count) => metric.encode_counter::<NoLabelSet, u64, f64>(&count, None),
        Value::Gauge(level) => metric.encode_gauge(&level),
    }
}

impl Counters {
    fn requests(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let mut family = encoder.encode_descriptor("horos_http_requests", "Requests answered", None, MetricType::Counter)?;
        for (place, count) in self.requests.iter().enumerate() {
            let count = count.load(Relaxed);
            if count == 0 {
                continue;
            }
            let (version, method) = (place / STATUSES / METHODS, place / STATUSES % METHODS);
            let code = match place % STATUSES {
                invented if invented == STATUSES - 1 => "other".to_owned(),
                place => (place + 100).to_string(),
            };
            let labels =
                [("version", Version::ALL[version].as_str()), ("method", MethodClass::ALL[method].as_str()), ("status", code.as_str())];
            show(&mut family.encode_family(&labels)?, Value::Counter(count))?;
        }
        Ok(())
    }

    fn durations(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let help = "From a request's head to the head of its answer";
        let unit = Unit::Seconds;
        let mut family = encoder.encode_descriptor("horos_http_request_duration", help, Some(&unit), MetricType::Histogram)?;
        for (version, spoken) in Version::ALL.iter().zip(&self.spoken) {
            let counts: [u64; BUCKETS.len() + 1] = std::array::from_fn(|bucket| spoken.durations[bucket].load(Relaxed));
            let bounds = BUCKETS.iter().map(|micros| seconds(*micros)).chain([f64::MAX]);
            let buckets: Vec<(f64, u64)> = bounds.zip(counts).collect();
            let labels: [Label; 1] = [("version", version.as_str())];
            let sum = seconds(spoken.duration_micros.load(Relaxed));
            family.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, counts.iter().sum(), &buckets, None)?;
        }
        Ok(())
    }

    fn refused(&self, encoder: &mut DescriptorEncoder) -> fmt::Result {
        let help = "Connections and requests refused or ended early";
        let mut family = encoder.encode_descriptor("horos_refused", help, None, MetricType::Counter)?;
        for (reason, counts) in Reason::ALL.iter().zip(&self.refused) {
            for (place, count) in counts.iter().enumerate() {
                let count = count.load(Relaxed);
                // One line of each reason always shows: what can be refused is to be known before it is.
                if count == 0 && place != VERSIONS {
                    continue;
                }
                let version = Version::ALL.get(place).map_or("none", |version| version.as_str());
                let labels = [("reason", reason.as_str()), ("version", version)];
                show(&mut family.encode_family(&labels)?, Value::Counter(count))?;
            }
        }
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a sum of microseconds loses nothing that shows before 285 years")]
fn seconds(micros: u64) -> f64 {
    micros as f64 / 1e6
}
