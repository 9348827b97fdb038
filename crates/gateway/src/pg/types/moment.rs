//! Dates and times: SQLite keeps their text, in binary they are counts since the year 2000.

const DAY_US: i64 = 86_400_000_000;
/// Days from 1970-01-01 to 2000-01-01.
const EPOCH_DAYS: i64 = 10_957;
/// Years that can be told: four digits, as in SQLite.
const YEARS: std::ops::RangeInclusive<i64> = 0..=9_999;

/// Days since 1970-01-01 of a day of the Gregorian calendar, counted on in both directions.
fn days_of(year: i64, month: i64, day: i64) -> i64 {
    let shifted = if month <= 2 { year - 1 } else { year };
    let era = shifted.div_euclid(400);
    let of_era = shifted - era * 400;
    let of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

fn day_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let of_era = days - era * 146_097;
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

fn digits(text: &str, length: usize) -> Option<i64> {
    (text.len() == length && text.bytes().all(|digit| digit.is_ascii_digit())).then(|| text.parse().ok())?
}

/// Days since 1970-01-01 of `2024-02-29`.
fn days(text: &str) -> Option<i64> {
    let mut parts = text.splitn(3, '-');
    let (year, month, day) = (digits(parts.next()?, 4)?, digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let days = days_of(year, month, day);
    // A day that there is comes back as itself.
    (day_of(days) == (year, month, day)).then_some(days)
}

/// Microseconds since midnight of `12:34`, `12:34:56` or `12:34:56.789`.
pub fn time(text: &str) -> Option<i64> {
    let (clock, fraction) = text.split_once('.').unwrap_or((text, ""));
    let mut parts = clock.split(':');
    let (hour, minute) = (digits(parts.next()?, 2)?, digits(parts.next()?, 2)?);
    let second = parts.next().map_or(Some(0), |second| digits(second, 2))?;
    if parts.next().is_some() || hour > 23 || minute > 59 || second > 59 || fraction.len() > 9 {
        return None;
    }
    let micros = match fraction {
        "" => 0,
        fraction => digits(format!("{fraction:0<6}").get(..6)?, 6)?,
    };
    Some(((hour * 60 + minute) * 60 + second) * 1_000_000 + micros)
}

/// Days since 2000-01-01. A time of day may follow, and is left out.
pub fn date(text: &str) -> Option<i32> {
    let day = text.split([' ', 'T']).next()?;
    i32::try_from(days(day)? - EPOCH_DAYS).ok()
}

/// Microseconds since 2000-01-01, without regard to a zone.
pub fn timestamp(text: &str) -> Option<i64> {
    zoned(text).map(|(micros, _)| micros)
}

/// Microseconds since 2000-01-01 in UTC; without a zone it is UTC.
pub fn timestamptz(text: &str) -> Option<i64> {
    zoned(text).map(|(micros, offset)| micros - offset)
}

/// Microseconds, and how far its zone is before UTC.
fn zoned(text: &str) -> Option<(i64, i64)> {
    let text = text.trim();
    let (day, clock) = text.split_once([' ', 'T']).unwrap_or((text, "00:00"));
    let (clock, zone) = match clock.find(['Z', '+', '-']) {
        Some(at) => (clock[..at].trim_end(), &clock[at..]),
        None => (clock, ""),
    };
    let micros = (days(day)? - EPOCH_DAYS) * DAY_US + time(clock)?;
    Some((micros, offset(zone)?))
}

/// Microseconds of `+02`, `+0200`, `-03:30` or `Z`.
fn offset(zone: &str) -> Option<i64> {
    let sign = match zone.as_bytes().first() {
        None | Some(b'Z') => return (zone.len() <= 1).then_some(0),
        Some(b'-') => -1,
        Some(_) => 1,
    };
    let numbers = zone[1..].replace(':', "");
    let (hours, minutes) = match numbers.len() {
        2 => (digits(&numbers, 2)?, 0),
        4 => (digits(numbers.get(..2)?, 2)?, digits(numbers.get(2..)?, 2)?),
        _ => return None,
    };
    Some(sign * (hours * 60 + minutes) * 60_000_000)
}

pub fn date_text(days: i32) -> Option<String> {
    let (year, month, day) = day_of(i64::from(days) + EPOCH_DAYS);
    YEARS.contains(&year).then(|| format!("{year:04}-{month:02}-{day:02}"))
}

pub fn time_text(micros: i64) -> Option<String> {
    if !(0..DAY_US).contains(&micros) {
        return None;
    }
    let (seconds, fraction) = (micros / 1_000_000, micros % 1_000_000);
    let clock = format!("{:02}:{:02}:{:02}", seconds / 3_600, seconds / 60 % 60, seconds % 60);
    Some(if fraction == 0 { clock } else { format!("{clock}.{fraction:06}") })
}

pub fn timestamp_text(micros: i64) -> Option<String> {
    let day = date_text(i32::try_from(micros.div_euclid(DAY_US)).ok()?)?;
    Some(format!("{day} {}", time_text(micros.rem_euclid(DAY_US))?))
}

/// A moment's text in the one form that it has here, be it `2024-02-29T12:00:00.500Z`. `None` when it is no moment, or
/// one that this form has no room for.
pub fn canonical(text: &str, is_zoned: bool) -> Option<String> {
    let fraction = text.split_once('.').map_or("", |(_, fraction)| fraction);
    if fraction.bytes().take_while(u8::is_ascii_digit).count() > 6 {
        return None;
    }
    let micros = if is_zoned { timestamptz(text)? } else { timestamp(text)? };
    let text = timestamp_text(micros)?;
    Some(if is_zoned { text + UTC } else { text })
}

/// How UTC ends the text of a moment.
pub const UTC: &str = "+00:00";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_have_one_form() {
        for (text, is_zoned, wanted) in [
            ("2023-11-14T22:13:20.000+00:00", true, Some("2023-11-14 22:13:20+00:00")),
            ("2023-11-14T22:13:20.5Z", true, Some("2023-11-14 22:13:20.500000+00:00")),
            ("2023-11-14 23:13:20+01", true, Some("2023-11-14 22:13:20+00:00")),
            ("2023-11-14", true, Some("2023-11-14 00:00:00+00:00")),
            ("2023-11-14T22:13:20+01:00", false, Some("2023-11-14 22:13:20")),
            ("2023-11-14 22:13", false, Some("2023-11-14 22:13:00")),
            ("2023-11-14 22:13:20.1234567", false, None),
            ("tomorrow", false, None),
            ("infinity", true, None),
        ] {
            let found = canonical(text, is_zoned);
            assert_eq!(found.as_deref(), wanted, "{text}");
            assert_eq!(found.as_deref().and_then(|text| canonical(text, is_zoned)), found, "{text}: once more");
        }
    }

    #[test]
    fn known_moments() {
        assert_eq!(date("2000-01-01"), Some(0));
        assert_eq!(date("1999-12-31"), Some(-1));
        assert_eq!(date("2024-03-01 12:00:00"), Some(8_826));
        assert_eq!(timestamp("2000-01-02T00:00:01.5"), Some(DAY_US + 1_500_000));
        assert_eq!(timestamptz("2000-01-01 02:00:00+02"), Some(0));
        assert_eq!(timestamptz("1999-12-31 20:30:00-03:30"), Some(0));
        assert_eq!(timestamptz("2000-01-01T00:00:00Z"), Some(0));
        for odd in [
            "",
            "2023-02-29",
            "2023-13-01",
            "23-01-01",
            "2023-01-01 25:00",
            "2023-01-01 1",
            "ü",
            "2023-01-01 00:00+ü1",
            "2023-01-01 00:00+aüb",
            "2023-01-01 00:00:00.aüüüü",
        ] {
            assert_eq!(timestamptz(odd), None, "{odd}");
        }
    }

    #[test]
    fn every_day_of_two_centuries_comes_back() {
        for day in -36_525..36_525 {
            assert_eq!(date(&date_text(day).unwrap()), Some(day));
        }
        assert_eq!(date_text(i32::MAX), None);
        assert_eq!(timestamp_text(i64::MIN), None);
    }
}
