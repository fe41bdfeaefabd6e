//! Log lines: to stderr, as text or JSON, as much as the configuration says. Data goes to stdout and is nobody's log.

use tracing_subscriber::{EnvFilter, fmt, layer::SubscriberExt as _, registry, util::SubscriberInitExt as _};

use crate::config::{Log, LogFormat};

/// Longest filter taken, in bytes.
const MAX_FILTER: usize = 4096;

/// Says whether a filter such as `info,horos_link=debug` can be used.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn check_filter(level: &str) -> Result<(), String> {
    filter(level).map(drop)
}

fn filter(level: &str) -> Result<EnvFilter, String> {
    if level.len() > MAX_FILTER {
        return Err(format!("longer than {MAX_FILTER} bytes"));
    }
    // `EnvFilter` takes any word for a module: `level: verbose` would silence everything.
    for part in level.split(',').map(str::trim) {
        let bare = !part.contains(['=', '[', ':']);
        let known = ["error", "warn", "info", "debug", "trace", "off"].iter().any(|known| part.eq_ignore_ascii_case(known));
        let module = part.starts_with("horos");
        if bare && !known && !module {
            return Err(format!("{:?} is no level", part.chars().take(40).collect::<String>()));
        }
    }
    // ractor's spans name actors by number (`Actor{id="0.8"}`) on every line; ours name them by name. rmcp tells of each session and of
    // each request that it refuses, with whatever a stranger said in it.
    let mut level = level.to_owned();
    for (module, usual) in [("ractor", "off"), ("rmcp", "error")] {
        if !level.split(',').any(|part| part.trim_start().starts_with(module)) {
            level = format!("{level},{module}={usual}");
        }
    }
    EnvFilter::builder().parse(level).map_err(|error| error.to_string())
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoggingError {
    /// The filter is none.
    #[error("log.level: {0}")]
    Filter(String),
    /// This process logs already.
    #[error("logging is set up already")]
    Twice,
}

/// Starts logging for the whole process, `color` where stderr is a terminal that wants it.
///
/// # Errors
/// [`LoggingError::Twice`] when something else in the process has done so.
pub fn start(log: &Log, color: bool) -> Result<(), LoggingError> {
    let filter = filter(&log.level).map_err(LoggingError::Filter)?;
    let base = registry().with(filter);
    // A full pipe or a closed terminal must not stop a node, so write errors are dropped by the layer.
    let started = match log.format {
        LogFormat::Text => base.with(fmt::layer().with_writer(std::io::stderr).with_ansi(color).with_target(true)).try_init(),
        LogFormat::Json => base
            .with(fmt::layer().json().flatten_event(true).with_current_span(true).with_span_list(false).with_writer(std::io::stderr))
            .try_init(),
    };
    started.map_err(|_| LoggingError::Twice)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ractors_own_lines_are_left_out_unless_they_are_asked_for() {
        let shown = |level: &str| {
            let text = std::sync::Arc::new(parking_lot::Mutex::new(Vec::new()));
            let writer = {
                let text = text.clone();
                move || Written(text.clone())
            };
            let layer = fmt::layer().with_writer(writer).with_ansi(false);
            tracing::subscriber::with_default(registry().with(filter(level).unwrap()).with(layer), || {
                tracing::info_span!(target: "ractor::actor", "Actor", id = "0.8").in_scope(|| tracing::info!("hello"));
            });
            let text = text.lock().clone();
            String::from_utf8(text).unwrap()
        };
        assert!(shown("info").contains("hello") && !shown("info").contains("Actor{"), "{}", shown("info"));
        assert!(shown("info,ractor=info").contains("Actor{"));
    }

    struct Written(std::sync::Arc<parking_lot::Mutex<Vec<u8>>>);

    impl std::io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_filter_that_would_silence_all_by_mistake_is_refused() {
        for good in ["info", "INFO", "info,horos_link=debug", "warn,quinn=error", "off"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["verbose", "", "info,loud", "horos_link=loud"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }
}
