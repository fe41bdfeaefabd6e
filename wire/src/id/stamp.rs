//! Ids that begin with the time for people: `20260102T030405Z_…`, UTC.
//!
//! The second in front is too coarse to sort by and a wall clock goes back. So [`timestamped`] takes
//! the time *out of* a UUIDv7 and puts the UUID behind it: text order is then the generator's order, within
//! a second and over a clock set back too. [`stamped`] is the bare form, for any id behind any time.

use std::fmt;

use uuid::Uuid;

use super::{IdError, UnixMillis, no_form, parse, v7};

/// Characters of the time with its `_`.
pub const LENGTH: usize = 17;

/// The first millisecond of the year 10000, which four digits cannot say.
const YEAR_10000: u64 = 253_402_300_800_000;
const FORM: &str = "timestamp YYYYMMDDThhmmssZ_";

/// A second, written `YYYYMMDDThhmmssZ_`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(u64);

impl Stamp {
    /// The second that `time` is in.
    ///
    /// # Errors
    /// [`IdError::Time`] after the year 9999.
    pub const fn new(time: UnixMillis) -> Result<Self, IdError> {
        if time.0 < YEAR_10000 { Ok(Self(time.0 / 1000)) } else { Err(IdError::Time(time.0)) }
    }

    /// The second's beginning.
    pub const fn millis(self) -> UnixMillis {
        UnixMillis(self.0 * 1000)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (year, month, day) = civil(self.0 / 86_400);
        let second = self.0 % 86_400;
        write!(f, "{year:04}{month:02}{day:02}T{:02}{:02}{:02}Z_", second / 3600, second / 60 % 60, second % 60)
    }
}

/// The date of a day counted from 1970-01-01, and back: Howard Hinnant, "chrono-Compatible Low-Level
/// Date Algorithms", `civil_from_days` and `days_from_civil`, without their years before 0.
const fn civil(days: u64) -> (u64, u64, u64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    let year = year_of_era + era * 400 + if month <= 2 { 1 } else { 0 };
    (year, month, day)
}

/// Wants a year from 1970, a month of 1 to 12 and a day of 1 to 31.
const fn days(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let shifted_month = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * shifted_month + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + of_year - 719_468
}

/// Puts `time` before `id`. Not monotonic: two of the same second sort by `id`.
///
/// # Errors
/// [`IdError::Time`] after the year 9999.
pub fn stamped(time: UnixMillis, id: impl fmt::Display) -> Result<String, IdError> {
    Ok(format!("{}{id}", Stamp::new(time)?))
}

/// Puts a UUIDv7's own time before it: rises as the generator's ids do, whatever the clock does.
///
/// # Errors
/// [`IdError::Version`] when it is no UUIDv7, [`IdError::Time`] after the year 9999.
pub fn timestamped(id: Uuid) -> Result<String, IdError> {
    stamped(v7::millis(super::seven(id)?), id.as_hyphenated())
}

/// Splits what [`stamped`] made into the second and the id.
///
/// # Errors
/// [`IdError::Form`] when the text does not begin with a timestamp that exists.
pub fn split(text: &str) -> Result<(Stamp, &str), IdError> {
    let bad = || no_form(FORM, text);
    let (head, id) = text.split_at_checked(LENGTH).ok_or_else(bad)?;
    let number = |from: usize, to: usize| -> Option<u64> {
        let digits = &head.as_bytes()[from..to];
        digits.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
    };
    let read = || {
        let (year, month, day) = (number(0, 4)?, number(4, 6)?, number(6, 8)?);
        let (hour, minute, second) = (number(9, 11)?, number(11, 13)?, number(13, 15)?);
        let plausible = year >= 1970 && (1..=12).contains(&month) && (1..=31).contains(&day);
        (plausible && hour < 24 && minute < 60 && second < 60)
            .then(|| Stamp(days(year, month, day) * 86_400 + hour * 3600 + minute * 60 + second))
    };
    let stamp = read().ok_or_else(bad)?;
    // Writing it again also refuses 31 February and any other separator.
    if stamp.to_string() == head { Ok((stamp, id)) } else { Err(bad()) }
}

/// Reads what [`timestamped`] made.
///
/// # Errors
/// [`IdError::Form`] also when the time is not the UUID's own, [`IdError::Version`] for another version.
pub fn parse_timestamped(text: &str) -> Result<Uuid, IdError> {
    let (stamp, id) = split(text)?;
    let uuid = parse(id)?;
    if Stamp::new(v7::millis(uuid))? == stamp { Ok(uuid) } else { Err(no_form("timestamp of this id", text)) }
}
