//! Times for people: seconds since 1970 as UTC, because a cluster may lie in several zones, and
//! lengths of time in their largest unit.
#![forbid(unsafe_code)]

const DAY_SECONDS: i64 = 86_400;

/// `2026-11-21 15:37:05`, UTC; `-` for a time that was never set.
pub fn utc(seconds: i64) -> String {
    if seconds == 0 {
        return "-".to_owned();
    }
    let (days, second) = (seconds.div_euclid(DAY_SECONDS), seconds.rem_euclid(DAY_SECONDS));
    let (year, month, day) = civil(days);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

/// Year, month and day of a day counted from 1970 (H. Hinnant, chrono-compatible low-level date
/// algorithms: the year begins in March, so that the leap day is its last).
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (year + era * 400 + i64::from(month <= 2), month, day)
}

/// `12s`, `3m`, `5h`, `9d`.
pub fn length(ms: u64) -> String {
    let seconds = ms / 1000;
    match seconds {
        0..100 => format!("{seconds}s"),
        100..6000 => format!("{}m", seconds / 60),
        6000..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_with_and_without_leap_years() {
        let rows = [
            (1, "1970-01-01 00:00:01"),
            (951_782_400, "2000-02-29 00:00:00"),
            (1_709_251_199, "2024-02-29 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
            (0, "-"),
        ];
        for (seconds, expected) in rows {
            assert_eq!(utc(seconds), expected);
        }
    }

    #[test]
    fn lengths() {
        let rows = [(999, "0s"), (99_999, "99s"), (100_000, "1m"), (7_200_000, "2h")];
        for (ms, expected) in rows {
            assert_eq!(length(ms), expected);
        }
        assert_eq!(length(9 * 86_400_000), "9d");
    }
}
