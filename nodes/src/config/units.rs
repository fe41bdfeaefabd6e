//! Spans of time and amounts of memory as people write them: `500ms`, `8MiB`. A bare number is refused,
//! because the reader of the file would have to guess its unit.

use std::{fmt, str::FromStr, time::Duration};

/// An amount of memory or disk in bytes, written `64KiB`, `8MiB`, `1GiB` or `512B`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` times 1024 bytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` times 1024² bytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The number of bytes; more than the machine can address becomes the most it can.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// Why a text is no span of time or no size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UnitError {
    /// No number and unit.
    #[error("expected {0}")]
    Shape(&'static str),
    /// A number without its unit.
    #[error("{0} of what? write the unit: {1}")]
    NoUnit(Box<str>, &'static str),
    /// A unit that is none here.
    #[error("no unit {0:?}: use {1}")]
    Unit(Box<str>, &'static str),
    /// More than the type can hold.
    #[error("too large")]
    TooLarge,
}

const SIZES: &str = "B, KiB, MiB, GiB or TiB";
const SPANS: &str = "ms, s, m, h or d (us for microseconds)";

/// Longest unit that is repeated in an error, in characters: a hostile file does not fill the terminal.
const MAX_UNIT_SHOWN: usize = 16;

/// Splits `1.5s` into digits before the point, digits after it, and unit.
fn split<'a>(text: &'a str, shape: &'static str, units: &'static str) -> Result<(u64, &'a str, &'a str), UnitError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || (number.ends_with('.')) {
        return Err(UnitError::Shape(shape));
    }
    let unit = unit.trim_start();
    if unit.is_empty() && text != "0" {
        return Err(UnitError::NoUnit(number.chars().take(MAX_UNIT_SHOWN).collect(), units));
    }
    let whole = whole.parse().map_err(|_| UnitError::TooLarge)?;
    Ok((whole, fraction, unit))
}

/// `whole.fraction` units of `scale` each, rounded down.
fn scaled(whole: u64, fraction: &str, scale: u128) -> Option<u128> {
    // Eighteen digits exceed the finest unit of either type; the rest could only round.
    let fraction = fraction.get(..18.min(fraction.len()))?;
    let digits = u32::try_from(fraction.len()).ok()?;
    let part = if fraction.is_empty() { 0 } else { fraction.parse::<u128>().ok()? };
    u128::from(whole).checked_mul(scale)?.checked_add(part.checked_mul(scale)? / 10u128.pow(digits))
}

impl FromStr for ByteSize {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Self, UnitError> {
        let (whole, fraction, unit) = split(text, "a size such as \"8MiB\"", SIZES)?;
        let scale: u128 = match unit {
            "" | "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            other => return Err(UnitError::Unit(other.chars().take(MAX_UNIT_SHOWN).collect(), SIZES)),
        };
        let bytes = scaled(whole, fraction, scale).ok_or(UnitError::TooLarge)?;
        u64::try_from(bytes).map(Self).map_err(|_| UnitError::TooLarge)
    }
}

/// Reads `500ms`, `1.5s`, `2m`, `1h`, `7d`.
///
/// # Errors
/// [`UnitError`] says what is wrong and how it is written.
pub fn span(text: &str) -> Result<Duration, UnitError> {
    let (whole, fraction, unit) = split(text, "a span of time such as \"500ms\"", SPANS)?;
    let nanos: u128 = match unit {
        "" | "ns" => 1,
        "us" | "µs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        other => return Err(UnitError::Unit(other.chars().take(MAX_UNIT_SHOWN).collect(), SPANS)),
    };
    let total = scaled(whole, fraction, nanos).ok_or(UnitError::TooLarge)?;
    u64::try_from(total).map(Duration::from_nanos).map_err(|_| UnitError::TooLarge)
}

/// Writes a span in the largest unit that takes no fraction, as [`span`] reads it.
pub fn show_span(span: Duration) -> String {
    let nanos = span.as_nanos();
    if nanos == 0 {
        return "0s".into();
    }
    for (scale, unit) in
        [(86_400_000_000_000, "d"), (3_600_000_000_000, "h"), (60_000_000_000, "m"), (1_000_000_000, "s"), (1_000_000, "ms"), (1_000, "us")]
    {
        if nanos.is_multiple_of(scale) {
            return format!("{}{unit}", nanos / scale);
        }
    }
    format!("{nanos}ns")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn spans_and_sizes_are_read_as_people_write_them() {
        assert_eq!(span("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(span("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(span("2 m"), Ok(Duration::from_secs(120)));
        assert_eq!(span("0"), Ok(Duration::ZERO));
        assert_eq!("8MiB".parse(), Ok(ByteSize::mib(8)));
        assert_eq!("1.5KiB".parse(), Ok(ByteSize(1536)));
    }

    #[test]
    fn a_bare_number_is_refused_with_the_units_there_are() {
        assert_eq!(span("500"), Err(UnitError::NoUnit("500".into(), SPANS)));
        assert!("8".parse::<ByteSize>().unwrap_err().to_string().contains("MiB"));
        assert!("8MB".parse::<ByteSize>().unwrap_err().to_string().contains("MiB"));
        for text in ["", "ms", ".5s", "1.s", "1.2.3s", "-1s", "99999999999999999999s", "18446744073709551615d"] {
            assert!(span(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(nanos in any::<u64>(), bytes in any::<u64>()) {
            let time = Duration::from_nanos(nanos);
            prop_assert_eq!(span(&show_span(time)), Ok(time));
            prop_assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in ".{0,40}") {
            let _ = span(&text);
            let _ = text.parse::<ByteSize>();
        }
    }
}
