//! Days since 1970 to a date of the Gregorian calendar and back, for the real-time clock.
//!
//! Years are counted from March, so that the leap day is the last day of a year and every month starts at a fixed
//! distance; 400 years are one period of 146097 days.

/// Days in 400 years.
const DAYS_PER_PERIOD: i64 = 146_097;
/// Days from 0000-03-01 to 1970-01-01.
const EPOCH: i64 = 719_468;

/// A date of the Gregorian calendar, extended to all years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Date {
    pub(super) year: i64,
    /// 1 to 12.
    pub(super) month: i64,
    /// 1 to 31.
    pub(super) day: i64,
}

impl Date {
    /// The date `days` after 1970-01-01. Meant for years of at most a few digits; far outside of that the sum may wrap.
    pub(super) fn from_days(days: i64) -> Self {
        let days = days.wrapping_add(EPOCH);
        let period = days.div_euclid(DAYS_PER_PERIOD);
        let day_of_period = days.rem_euclid(DAYS_PER_PERIOD);
        // Every 4th year is one day longer, but not every 100th, except the last of the period.
        let year_of_period = (day_of_period - day_of_period / 1460 + day_of_period / 36_524
            - day_of_period / (DAYS_PER_PERIOD - 1))
            / 365;
        let day_of_year = day_of_period - (365 * year_of_period + year_of_period / 4 - year_of_period / 100);
        let months_since_march = (5 * day_of_year + 2) / 153;
        let is_next_year = months_since_march >= 10;
        Self {
            year: period * 400 + year_of_period + i64::from(is_next_year),
            month: if is_next_year { months_since_march - 9 } else { months_since_march + 3 },
            day: day_of_year - days_before(months_since_march) + 1,
        }
    }

    /// Days since 1970-01-01, or `None` if there is no such date.
    pub(super) fn to_days(self) -> Option<i64> {
        if !(1..=12).contains(&self.month) || !(0..=9999).contains(&self.year) {
            return None;
        }
        let months_since_march = (self.month + 9) % 12;
        let year = self.year - i64::from(self.month <= 2);
        let year_of_period = year.rem_euclid(400);
        let day_of_year = days_before(months_since_march) + self.day - 1;
        let day_of_period = 365 * year_of_period + year_of_period / 4 - year_of_period / 100 + day_of_year;
        let days = year.div_euclid(400) * DAYS_PER_PERIOD + day_of_period - EPOCH;
        // A day that its month does not have comes back as another date.
        (Self::from_days(days) == self).then_some(days)
    }

    /// 1 for Sunday to 7 for Saturday, the way the MC146818 counts.
    pub(super) fn day_of_week(days: i64) -> i64 {
        // 1970-01-01 was a Thursday.
        (days.rem_euclid(7) + 4) % 7 + 1
    }
}

/// Days from 1 March to the first of the month that is `months` later: months of 31, 30, 31, 30, 31 days, repeated.
fn days_before(months: i64) -> i64 {
    (153 * months + 2) / 5
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn date(year: i64, month: i64, day: i64) -> Date {
        Date { year, month, day }
    }

    #[test]
    fn known_dates_have_their_days() {
        for (days, known) in [
            (0, date(1970, 1, 1)),
            (-1, date(1969, 12, 31)),
            (11_016, date(2000, 2, 29)),
            (11_017, date(2000, 3, 1)),
            (20_779, date(2026, 11, 22)),
            (47_541, date(2100, 3, 1)),
            (2_932_896, date(9999, 12, 31)),
        ] {
            assert_eq!(Date::from_days(days), known);
            assert_eq!(known.to_days(), Some(days));
        }
    }

    #[test]
    fn dates_that_do_not_exist_are_refused() {
        for wrong in [
            date(2026, 0, 1),
            date(2026, 13, 1),
            date(2026, 1, 0),
            date(2026, 4, 31),
            date(2025, 2, 29),
            date(2100, 2, 29),
            date(10_000, 1, 1),
        ] {
            assert_eq!(wrong.to_days(), None, "{wrong:?}");
        }
    }

    #[test]
    fn days_of_the_week_are_known() {
        assert_eq!(Date::day_of_week(0), 5);
        assert_eq!(Date::day_of_week(20_779), 1);
        assert_eq!(Date::day_of_week(-1), 4);
    }

    proptest! {
        #[test]
        fn every_day_is_a_date_and_back(days in -700_000..2_932_897i64) {
            prop_assert_eq!(Date::from_days(days).to_days(), Some(days));
        }

        #[test]
        fn the_next_day_is_the_next_date(days in -700_000..2_900_000i64) {
            let (today, tomorrow) = (Date::from_days(days), Date::from_days(days + 1));
            let follows = tomorrow == date(today.year, today.month, today.day + 1)
                || (today.day >= 28 && tomorrow == date(today.year, today.month + 1, 1))
                || (today.month == 12 && today.day == 31 && tomorrow == date(today.year + 1, 1, 1));
            prop_assert!(follows, "{:?} {:?}", today, tomorrow);
        }

        #[test]
        fn any_number_of_days_is_harmless(days: i64) {
            Date::from_days(days);
        }
    }
}
