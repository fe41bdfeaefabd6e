//! The second that it is, as heads say it (RFC 9110 §6.6.1).

use std::time::{SystemTime, UNIX_EPOCH};

use http::HeaderValue;
use parking_lot::Mutex;

/// Said anew once a second; all other answers say it again.
#[derive(Debug, Default)]
pub(crate) struct Date(Mutex<(i64, Option<HeaderValue>)>);

impl Date {
    /// None for a time that has no form: the year 10000.
    pub(crate) fn at(&self, now: SystemTime) -> Option<HeaderValue> {
        let second = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().try_into().unwrap_or(i64::MAX));
        let mut date = self.0.lock();
        if date.0 != second || date.1.is_none() {
            let text = jiff::Timestamp::from_second(second)
                .and_then(|now| jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&now));
            *date = (second, text.ok().and_then(|text| HeaderValue::try_from(text).ok()));
        }
        date.1.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_date_is_written_as_http_writes_it_and_goes_on() {
        let date = Date::default();
        // The example of RFC 9110 §5.6.7.
        let then = UNIX_EPOCH + Duration::from_millis(784_111_777_999);
        assert_eq!(date.at(then).unwrap(), "Sun, 06 Nov 1994 08:49:37 GMT");
        assert_eq!(date.at(then + Duration::from_millis(1)).unwrap(), "Sun, 06 Nov 1994 08:49:38 GMT");
        assert_eq!(date.at(UNIX_EPOCH - Duration::from_secs(1)).unwrap(), "Thu, 01 Jan 1970 00:00:00 GMT");
        assert_eq!(date.at(UNIX_EPOCH + Duration::from_secs(1 << 40)), None);
    }
}
