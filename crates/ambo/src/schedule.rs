//! Schedules: a run is enqueued at times that come again, by whichever worker keeps the house.

use std::ops::Range;
use std::str::FromStr as _;
use std::time::Duration;

use croner::Cron;
use croner::parser::{CronParser, Seconds};
use jiff::civil::DateTime;
use jiff::tz::{AmbiguousOffset, TimeZone};
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use crate::client::Client;
use crate::enqueue::Enqueue;
use crate::error::{Code, Error, Result};
use crate::id::RunId;
use crate::store;
use crate::store::schedule::NewSchedule;
use crate::vault::place::Place;

/// Ticks that one backfill makes up for.
const BACKFILL_MAX: usize = 10_000;
/// No tick is missed for less: the keeper comes by once a second, and a new one is there within a few.
const CATCH_UP: Duration = Duration::from_secs(60);

/// What a tick does while the run of the one before has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Overlap {
    /// Nothing: this tick has no run.
    #[default]
    Skip,
    /// It waits for that end; ticks that come meanwhile wait behind it.
    Queue,
    /// It asks that run to end, and begins.
    Cancel,
    /// It begins beside it.
    Allow,
}

impl Overlap {
    /// The name in SQL and on the command line.
    pub const fn as_str(self) -> &'static str {
        match self {
            Overlap::Skip => "skip",
            Overlap::Queue => "queue",
            Overlap::Cancel => "cancel",
            Overlap::Allow => "allow",
        }
    }
}

/// A schedule to be: options with defaults, then [`set`](Schedule::set). It lives in the database, where it can be changed
/// while workers run; each of its ticks is one run, however many workers there are and whatever crashes. The run's key is
/// the name of the schedule, `@`, and the time of the tick; its attribute `schedule` is the name.
///
/// # Example: a tick is one run
/// ```no_run
/// # async fn example(client: ambo::Client) -> ambo::Result<()> {
/// use ambo::{Enqueue, Overlap, Schedule};
///
/// let report = Enqueue::<ambo::Untyped>::named("report", &"daily");
/// let nightly = Schedule::cron("nightly report", "30 3 * * *", report).timezone("Europe/Berlin");
/// assert!(nightly.overlap(Overlap::Queue).set(&client).await?);          // it is new
///
/// let day = "2026-03-28T12:00:00Z".parse().unwrap().."2026-03-29T12:00:00Z".parse().unwrap();
/// let made_up = client.backfill_schedule("nightly report", day.clone()).await?;
/// assert_eq!(made_up.len(), 1);
/// assert_eq!(client.backfill_schedule("nightly report", day).await?, made_up);    // the same run
/// # Ok(()) }
/// ```
#[derive(Debug)]
#[must_use = "a schedule does nothing until it is set"]
pub struct Schedule<W> {
    name: String,
    enqueue: Enqueue<W>,
    cron: Option<String>,
    timezone: Option<String>,
    every: Option<Duration>,
    overlap: Overlap,
    jitter: Duration,
    catch_up: Duration,
}

impl<W> Schedule<W> {
    fn new(name: impl Into<String>, enqueue: Enqueue<W>) -> Self {
        Schedule {
            name: name.into(),
            enqueue,
            cron: None,
            timezone: None,
            every: None,
            overlap: Overlap::Skip,
            jitter: Duration::ZERO,
            catch_up: CATCH_UP,
        }
    }

    /// A run of `enqueue` whenever a cron pattern says so: minute, hour, day of month, month, day of week (0 and 7 are
    /// Sunday), with seconds before them if there are six fields. In UTC unless there is a [`timezone`](Schedule::timezone).
    ///
    /// Where clocks are put forward, a fixed time that is left out (also one of a list or a range) comes right after the gap, once, and
    /// what repeats (`*` or `*/5` as the hour or minute) is left out; where they are put back, a fixed time comes once, the first
    /// time, and what repeats comes in both hours.
    pub fn cron(name: impl Into<String>, pattern: impl Into<String>, enqueue: Enqueue<W>) -> Self {
        let schedule = Schedule::new(name, enqueue);
        Schedule { cron: Some(pattern.into()), timezone: Some("UTC".into()), ..schedule }
    }

    /// A run of `enqueue` so often, from 1 second to 10 years; the first when that time has passed.
    pub fn every(name: impl Into<String>, span: Duration, enqueue: Enqueue<W>) -> Self {
        Schedule { every: Some(span), ..Schedule::new(name, enqueue) }
    }

    /// The time zone of the cron pattern, by its IANA name. Default: UTC.
    pub fn timezone(mut self, name: impl Into<String>) -> Self {
        self.timezone = Some(name.into());
        self
    }

    /// What a tick does while the run of the one before has not ended. Default: skip.
    pub fn overlap(mut self, overlap: Overlap) -> Self {
        self.overlap = overlap;
        self
    }

    /// Each run begins at a random time between its tick and so much later, up to 10 years. Default: none.
    pub fn jitter(mut self, span: Duration) -> Self {
        self.jitter = span;
        self
    }

    /// Ticks that were missed, because no worker was there or the schedule was paused, are made up for if they are no longer
    /// ago than this: up to 10 years, none at all with zero. Default: 60 s. Ticks that wait in [`Overlap::Queue`] are not missed.
    pub fn catch_up(mut self, span: Duration) -> Self {
        self.catch_up = span;
        self
    }

    /// Creates the schedule, or changes the one of this name; says whether it is new. One whose times stay the same keeps
    /// its next tick, so that every process may set it whenever it starts.
    ///
    /// # Errors
    /// `AMBO001` for the name, `AMBO005` for a pattern that cannot be read or never comes, a time zone that there is not, a
    /// span out of its range, or an option that a schedule does not take (key, delay); those of [`Enqueue::on`].
    pub async fn set(self, client: &Client) -> Result<bool> {
        let mut run = self.enqueue.into_run()?;
        // It outlives every retention, and so stays in the database.
        let limit = crate::Vault::new();
        limit.check("the input", &run.input)?;
        run.input = client.vault().seal_inline(&Place::Input { keyed: false }, &run.input)?;
        limit.check("the input, encrypted,", &run.input)?;
        if run.key.is_some() || run.key_lifetime.is_some() || run.delay.is_some() || run.at.is_some() {
            let text = "a schedule's run takes no key and no delay: its key is the schedule and the time";
            return Err(Error::new(Code::InvalidOption, text));
        }
        if self.name.contains('\0') {
            return Err(Error::new(Code::InvalidName, "the name of the schedule holds a NUL byte"));
        }
        let now = client.now().await?;
        let timing = Timing::new(self.cron.as_deref(), self.timezone.as_deref(), self.every)?;
        let Some(next) = timing.next(now, now) else {
            let text = format!("the pattern {:?} never comes", self.cron.unwrap_or_default());
            return Err(Error::new(Code::InvalidOption, text));
        };
        let schedule = NewSchedule {
            name: self.name,
            run,
            cron: self.cron,
            timezone: self.timezone,
            every: self.every,
            overlap: self.overlap.as_str(),
            jitter: self.jitter,
            catch_up: self.catch_up,
            next,
        };
        store::schedule::set(&client.session().await?, client.schema(), &schedule).await
    }
}

/// When ticks come.
#[derive(Debug)]
pub(crate) enum Timing {
    /// At the times of a clock on the wall, once each: see [`on_the_wall`].
    Fixed(Box<Cron>, TimeZone),
    /// Again and again: in every hour or minute that there is.
    Repeating(Box<Cron>, TimeZone),
    Every(SignedDuration),
}

impl Timing {
    pub(crate) fn new(cron: Option<&str>, timezone: Option<&str>, every: Option<Duration>) -> Result<Timing> {
        let wrong = |text: String| Error::new(Code::InvalidOption, text);
        if let Some(every) = every {
            if every < Duration::from_secs(1) {
                return Err(wrong(format!("a schedule comes once a second at most, not every {every:?}")));
            }
            if timezone.is_some() {
                return Err(wrong("a schedule that comes every so often takes no time zone".into()));
            }
            let span = SignedDuration::try_from(every).map_err(|_| wrong("that span is too long".into()))?;
            return Ok(Timing::Every(span));
        }
        let pattern = cron.unwrap_or_default();
        let short: String = pattern.chars().take(100).collect();
        let timezone = timezone.unwrap_or("UTC");
        let unread = |why: &str| wrong(format!("the cron pattern {short:?} cannot be read: {why}"));
        // What is read here and what SQL lets in is the same: `cron_fault` in `sql/functions/cron.sql`; `store/cron.rs` tests it.
        if !pattern.is_ascii() {
            return Err(unread("it is not ASCII"));
        }
        let fields = pattern.split_whitespace().count();
        let nickname = pattern.trim().strip_prefix('@').map(str::to_ascii_lowercase);
        match nickname.as_deref() {
            Some("yearly" | "annually" | "monthly" | "weekly" | "daily" | "hourly") => {}
            Some(_) => {
                return Err(unread("of this kind there are @yearly, @monthly, @weekly, @daily and @hourly"));
            }
            None if (5..=6).contains(&fields) => {}
            None => return Err(unread(&format!("a pattern has 5 or 6 fields, not {fields}"))),
        }
        let parser = CronParser::builder().seconds(Seconds::Optional).build();
        let cron = parser.parse(pattern).map_err(|_| unread(&odd_field(&parser, pattern)))?;
        let zone = TimeZone::get(timezone).map_err(|_| {
            let short: String = timezone.chars().take(100).collect();
            wrong(format!("there is no time zone {short:?}; IANA names are like Europe/Berlin"))
        })?;
        // As every cron has it: an hour or minute that is open makes it one that repeats.
        let mut times = pattern.split_whitespace().skip(fields.saturating_sub(5)).take(2);
        let repeats =
            nickname.map_or_else(|| times.any(|field| field.contains('*')), |name| name == "hourly");
        let cron = Box::new(cron);
        Ok(if repeats { Timing::Repeating(cron, zone) } else { Timing::Fixed(cron, zone) })
    }

    /// The first tick after a time; `tick` is one that there was, which the others of an interval follow from.
    pub(crate) fn next(&self, after: Timestamp, tick: Timestamp) -> Option<Timestamp> {
        match self {
            Timing::Repeating(cron, zone) => {
                let next = cron.find_next_occurrence(&after.to_zoned(zone.clone()), false).ok()?;
                Some(next.timestamp())
            }
            Timing::Fixed(cron, zone) => {
                // The hands of the clock do not know of its changes. What they showed before is over in either of two equal hours.
                let mut hands = after.to_zoned(zone.clone()).datetime().to_zoned(TimeZone::UTC).ok()?;
                loop {
                    hands = cron.find_next_occurrence(&hands, false).ok()?;
                    let time = on_the_wall(zone, hands.datetime())?;
                    if time > after {
                        return Some(time);
                    }
                }
            }
            Timing::Every(span) => {
                let past = after.duration_since(tick).as_micros().max(0);
                let ticks = past / span.as_micros() + 1;
                let whole = i64::try_from(ticks.checked_mul(span.as_micros())?).ok()?;
                tick.checked_add(SignedDuration::from_micros(whole)).ok()
            }
        }
    }
}

/// Which field of a pattern cannot be read: beside others of which each can.
fn odd_field(parser: &CronParser, pattern: &str) -> String {
    const NAMES: [&str; 6] = ["second", "minute", "hour", "day of the month", "month", "day of the week"];
    let fields: Vec<&str> = pattern.split_whitespace().collect();
    let names = &NAMES[NAMES.len().saturating_sub(fields.len())..];
    for (place, (field, name)) in fields.iter().zip(names).enumerate() {
        let mut alone = vec!["*"; fields.len()];
        alone[place] = field;
        if parser.parse(&alone.join(" ")).is_err() {
            let short: String = field.chars().take(50).collect();
            return format!("{short:?} is no {name}");
        }
    }
    "its fields do not go together".to_owned()
}

/// When a clock on the wall shows a time: the first time where it is put back, right after the gap where it is put forward past it.
fn on_the_wall(zone: &TimeZone, time: DateTime) -> Option<Timestamp> {
    let shown = zone.to_ambiguous_timestamp(time);
    match shown.offset() {
        AmbiguousOffset::Gap { .. } => {
            let before = shown.earlier().ok()?;
            zone.following(before).next().map(|change| change.timestamp())
        }
        _ => shown.earlier().ok(),
    }
}

/// A schedule, as an operator sees it.
#[derive(Debug, Serialize)]
pub struct ScheduleSummary {
    /// Its name.
    pub name: String,
    /// The workflow of its runs.
    pub workflow: String,
    /// The queue of its runs.
    pub queue: String,
    /// Its cron pattern, or how often it comes.
    pub times: String,
    /// The time zone of the pattern.
    pub timezone: Option<String>,
    /// What a tick does while the run of the one before has not ended.
    pub overlap: String,
    /// No tick comes.
    pub paused: bool,
    /// The next tick. 1970: the keeper has not reckoned it yet.
    pub next_at: Timestamp,
    /// The last tick that had a run.
    pub last_at: Option<Timestamp>,
    /// The run of that tick.
    pub last_run: Option<RunId>,
    /// Ticks that had no run: skipped, missed or refused.
    pub skipped: i64,
    /// Why the last tick could not be enqueued, or why there will be none.
    pub error: Option<String>,
}

impl Client {
    /// The schedules, by name.
    ///
    /// # Errors
    /// `AMBO040` if the database is away.
    pub async fn list_schedules(&self) -> Result<Vec<ScheduleSummary>> {
        store::schedule::list(&self.session().await?, self.schema()).await
    }

    /// Stops the ticks of a schedule, or lets it go on, with the ticks that it still makes up for.
    ///
    /// # Errors
    /// `AMBO035` if there is no such schedule.
    pub async fn pause_schedule(&self, name: &str, paused: bool) -> Result<()> {
        store::schedule::pause(&self.session().await?, self.schema(), name, paused).await
    }

    /// Enqueues a run of a schedule now, beside its ticks, also of one that is paused.
    ///
    /// # Errors
    /// `AMBO035` if there is no such schedule; those of [`Enqueue::on`].
    pub async fn trigger_schedule(&self, name: &str) -> Result<RunId> {
        store::schedule::trigger(&self.session().await?, self.schema(), name).await.map(Into::into)
    }

    /// Enqueues the runs of the ticks from a time to before another one, up to 10,000, and gives all of them, in the order of
    /// their ticks: those that there were already are not enqueued again.
    ///
    /// # Errors
    /// `AMBO005` for more than 10,000 ticks, or where the times end before they begin; `AMBO035` if there is no such schedule.
    pub async fn backfill_schedule(&self, name: &str, times: Range<Timestamp>) -> Result<Vec<RunId>> {
        if times.end < times.start {
            let text = format!(
                "a backfill is from a time to a later one, not from {} to {}",
                times.start, times.end
            );
            return Err(Error::new(Code::InvalidOption, text));
        }
        let session = self.session().await?;
        let Some((timing, tick)) = store::schedule::timing(&session, self.schema(), name).await? else {
            return Err(Error::new(Code::UnknownSchedule, format!("there is no schedule {name:?}")));
        };
        let mut ticks = Vec::new();
        let before = |time: Timestamp| time.checked_sub(SignedDuration::from_micros(1)).unwrap_or(time);
        // Ticks of an interval are reckoned from one before the time.
        let from = timing.first_before(tick, times.start);
        let mut next = timing.next(before(times.start), from);
        while let Some(time) = next.filter(|time| *time < times.end) {
            if ticks.len() == BACKFILL_MAX {
                let text =
                    format!("there are more than {BACKFILL_MAX} ticks in this time; backfill it in parts");
                return Err(Error::new(Code::InvalidOption, text));
            }
            ticks.push(time);
            next = timing.next(time, time);
        }
        let runs = store::schedule::backfill(&session, self.schema(), name, &ticks).await?;
        Ok(runs.into_iter().map(Into::into).collect())
    }

    /// Deletes a schedule; its runs stay.
    ///
    /// # Errors
    /// `AMBO035` if there is no such schedule.
    pub async fn delete_schedule(&self, name: &str) -> Result<()> {
        store::schedule::delete(&self.session().await?, self.schema(), name).await
    }
}

impl Timing {
    /// Why [`next`](Timing::next) knows no tick, if it does not.
    pub(crate) fn fault(timing: &Result<Timing>, after: Timestamp, tick: Timestamp) -> Option<String> {
        match timing {
            Err(error) => Some(error.to_string()),
            Ok(timing) => timing.next(after, tick).is_none().then(|| "it never comes again".to_owned()),
        }
    }

    /// A tick of an interval at or before a time, given any tick.
    pub(crate) fn first_before(&self, tick: Timestamp, time: Timestamp) -> Timestamp {
        let Timing::Every(span) = self else { return time };
        let ahead = tick.duration_since(time).as_micros().max(0);
        let ticks = ahead / span.as_micros() + 1;
        let back = ticks.checked_mul(span.as_micros()).and_then(|back| i64::try_from(back).ok());
        back.and_then(|back| tick.checked_sub(SignedDuration::from_micros(back)).ok()).unwrap_or(time)
    }
}

/// The time of the tick that a run was enqueued for, read from its key.
pub(crate) fn tick_of(key: &str) -> Option<Timestamp> {
    Timestamp::from_str(key.rsplit_once('@')?.1).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    fn ticks(pattern: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
        let timing = Timing::new(Some(pattern), Some(zone), None).expect(pattern);
        let mut time = at(from);
        let next = || {
            time = timing.next(time, time)?;
            Some(time.to_string())
        };
        std::iter::from_fn(next).take(count).collect()
    }

    #[test]
    fn a_fixed_time_comes_once_a_day_through_both_changes_of_the_clock() {
        // 02:30 does not exist on the 29th of March 2026 in Berlin: it comes at 03:00, which is 01:00 UTC.
        let spring = ticks("30 2 * * *", "Europe/Berlin", "2026-03-27T12:00:00Z", 3);
        assert_eq!(spring, ["2026-03-28T01:30:00Z", "2026-03-29T01:00:00Z", "2026-03-30T00:30:00Z"]);
        // 02:30 exists twice on the 25th of October: it comes the first time only.
        let autumn = ticks("30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2);
        assert_eq!(autumn, ["2026-10-25T00:30:00Z", "2026-10-26T01:30:00Z"]);
    }

    #[test]
    fn lists_and_ranges_of_fixed_times_do_so_too() {
        let spring = |pattern, zone| ticks(pattern, zone, "2026-03-28T23:00:00Z", 3);
        let autumn = |pattern, zone| ticks(pattern, zone, "2026-10-24T22:00:00Z", 3);
        let (berlin, london) = ("Europe/Berlin", "Europe/London");
        let (gap, noon) = ("2026-03-29T01:00:00Z", "2026-03-29T12:00:00Z");
        assert_eq!(spring("0 2,14 * * *", berlin), [gap, noon, "2026-03-30T00:00:00Z"]);
        // Two in the gap, and one at its end, are one.
        assert_eq!(spring("0,30 2 * * *", berlin)[..2], [gap, "2026-03-30T00:00:00Z"]);
        assert_eq!(spring("0,30 2-3 * * *", berlin)[..2], [gap, "2026-03-29T01:30:00Z"]);
        assert_eq!(spring("30 1,2 * * *", london)[..2], [gap, "2026-03-29T01:30:00Z"]);
        assert_eq!(
            autumn("0 2,14 * * *", berlin),
            ["2026-10-25T00:00:00Z", "2026-10-25T13:00:00Z", "2026-10-26T01:00:00Z"]
        );
        assert_eq!(
            autumn("0,30 2 * * *", berlin),
            ["2026-10-25T00:00:00Z", "2026-10-25T00:30:00Z", "2026-10-26T01:00:00Z"]
        );
        // Also for who looks between the two equal hours, or in the second of them.
        for from in ["2026-10-25T00:30:00Z", "2026-10-25T01:00:00Z", "2026-10-25T01:15:00Z"] {
            assert_eq!(ticks("30 2 * * *", berlin, from, 1), ["2026-10-26T01:30:00Z"], "{from}");
        }
        assert_eq!(ticks("0 3 * * *", berlin, "2026-10-25T01:15:00Z", 1), ["2026-10-25T02:00:00Z"]);
        // A clock that is put forward by half an hour, and one that is at midnight.
        assert_eq!(
            ticks("15 2 * * *", "Australia/Lord_Howe", "2026-10-03T12:00:00Z", 1),
            ["2026-10-03T15:30:00Z"]
        );
        assert_eq!(
            ticks("30 0 * * *", "America/Asuncion", "2024-10-05T12:00:00Z", 1),
            ["2024-10-06T04:00:00Z"]
        );
    }

    #[test]
    fn what_repeats_comes_in_every_hour_that_there_is() {
        let spring = ticks("0 * * * *", "Europe/Berlin", "2026-03-28T23:30:00Z", 4);
        assert_eq!(
            spring,
            ["2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z", "2026-03-29T02:00:00Z", "2026-03-29T03:00:00Z"]
        );
        let autumn = ticks("0 * * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", 3);
        assert_eq!(autumn, ["2026-10-25T00:00:00Z", "2026-10-25T01:00:00Z", "2026-10-25T02:00:00Z"]);
        // In an hour that there is not, none; in one that there is twice, twice as many.
        let spring = ticks("*/30 2 * * *", "Europe/Berlin", "2026-03-28T23:30:00Z", 1);
        assert_eq!(spring, ["2026-03-30T00:00:00Z"]);
        let autumn = ticks("*/30 2 * * *", "Europe/Berlin", "2026-10-24T23:30:00Z", 5);
        assert_eq!(autumn[3..], ["2026-10-25T01:30:00Z", "2026-10-26T01:00:00Z"]);
    }

    #[test]
    fn patterns_have_five_fields_or_six() {
        assert_eq!(ticks("*/15 * * * * *", "UTC", "2026-01-01T00:00:01Z", 1), ["2026-01-01T00:00:15Z"]);
        assert_eq!(
            ticks("0 9 * * 1", "UTC", "2026-01-01T00:00:00Z", 1),
            ["2026-01-05T09:00:00Z"],
            "a Monday"
        );
        for wrong in ["", "*", "61 * * * *", "* * * *", "a b c d e", "* * * * * * * *", "*\0* * * *"] {
            let error = Timing::new(Some(wrong), None, None).expect_err(wrong);
            assert_eq!(error.code(), Code::InvalidOption, "{wrong}");
        }
        assert!(Timing::new(Some("* * * * *"), Some("Mars/Olympus"), None).is_err());
        assert!(Timing::new(None, None, Some(Duration::from_millis(999))).is_err());
    }

    #[test]
    fn an_interval_keeps_its_beat() {
        let timing = Timing::new(None, None, Some(Duration::from_secs(90))).unwrap();
        let tick = at("2026-01-01T00:00:00Z");
        assert_eq!(timing.next(tick, tick), Some(at("2026-01-01T00:01:30Z")));
        assert_eq!(
            timing.next(at("2026-01-01T00:10:00Z"), tick),
            Some(at("2026-01-01T00:10:30Z")),
            "missed ones are passed"
        );
        let before = timing.first_before(tick, at("2025-12-31T23:55:01Z"));
        assert_eq!(timing.next(at("2025-12-31T23:55:01Z"), before), Some(at("2025-12-31T23:55:30Z")));
    }
}
