//! What is done in a round, and when: all of it from the seed.

use std::fmt;
use std::time::Duration;

use crate::proxy::Fate;
use crate::random::Random;

/// How many worker processes there are.
pub(crate) const WORKERS: u64 = 3;

/// A round.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    /// For how long blows fall; then the last runs end in peace.
    pub(crate) length: Duration,
    /// A transaction pooler stands before the database.
    pub(crate) pooled: bool,
    /// The log of the first primary is on a small volume.
    pub(crate) small_volume: bool,
    /// The workers have a clock that can jump.
    pub(crate) wrong_clock: bool,
    /// The lease is as short as it may be, and workers are stopped until it has run out.
    pub(crate) short_lease: bool,
    /// What happens, by the time since the beginning.
    pub(crate) blows: Vec<(Duration, Blow)>,
}

/// One thing that is done to the system.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Blow {
    /// SIGKILL; another is hired after a while.
    KillWorker { desk: usize, vacant: Duration },
    /// SIGSTOP, and SIGCONT after a while.
    StopWorker { desk: usize, time: Duration },
    /// SIGSTOP, and SIGCONT so long after it was buried: it wakes with claims that others have by now.
    BuryWorker { desk: usize, late: Duration },
    /// An immediate stop of the primary, and a start.
    CrashDatabase,
    /// The primary is killed and gone; the standby is promoted, and gets a standby of its own.
    LosePrimary,
    /// Ends backends one by one, those in the midst of a commit first.
    EndBackends { times: u64 },
    /// A part of the connections, one in `of`.
    Connections { fate: Fate, of: u64, time: Duration },
    /// Everything that is sent takes a while.
    Delay { most: Duration, time: Duration },
    /// No room for the write-ahead log.
    FillVolume { time: Duration },
    /// The clock of the workers jumps, and back.
    Clock { seconds: i64, time: Duration },
    /// The schema is migrated to the version to come; then all workers are replaced by those of it, one by one.
    Upgrade,
    /// pgbench is killed, and another comes.
    KillPgbench,
}

impl Plan {
    pub(crate) fn draw(seed: u64) -> Plan {
        let mut random = Random::new(seed);
        let length = random.time(4000..7000);
        let pooled = random.once_in(4);
        let small_volume = random.once_in(3);
        let wrong_clock = random.once_in(3);
        let mut blows: Vec<(Duration, Blow)> = Vec::new();
        let count = 5 + random.below(6);
        for _ in 0..count {
            let at = random.time(300..length.as_millis() as u64);
            blows.push((at, Blow::draw(&mut random, wrong_clock)));
        }
        if small_volume {
            let fill = Blow::FillVolume { time: random.time(300..1500) };
            blows.push((random.time(500..2500), fill));
        }
        // Drawn last: what a seed meant before there was this, it still means.
        let short_lease = random.once_in(2);
        if short_lease {
            // One among the others, and one when hardly anything falls any more: it wakes with the connections that it had. Two desks,
            // for somebody has to be left who buries.
            let length = length.as_millis() as u64;
            for (desk, at) in [(0, random.time(length / 2..length)), (1, random.time(length..length + 1000))]
            {
                blows.push((at, Blow::BuryWorker { desk, late: random.time(0..150) }));
            }
        }
        blows.sort_by_key(|(at, _)| *at);
        Plan { seed, length, pooled, small_volume, wrong_clock, short_lease, blows }
    }
}

impl Blow {
    fn draw(random: &mut Random, wrong_clock: bool) -> Blow {
        let desk = random.below(WORKERS) as usize;
        match random.below(if wrong_clock { 17 } else { 15 }) {
            0..3 => Blow::KillWorker { desk, vacant: random.time(0..1000) },
            3..5 => Blow::StopWorker { desk, time: random.time(200..5000) },
            5 => Blow::CrashDatabase,
            6..8 => Blow::LosePrimary,
            8..10 => Blow::EndBackends { times: 1 + random.below(20) },
            10 => {
                let fate = match random.below(4) {
                    0 => Fate::Cut,
                    1 => Fate::Deaf,
                    2 => Fate::ClientGone,
                    _ => Fate::ServerGone,
                };
                Blow::Connections { fate, of: 1 + random.below(4), time: random.time(500..5000) }
            }
            11 => Blow::Connections { fate: Fate::Cut, of: 1, time: Duration::ZERO },
            12 => Blow::Delay { most: random.time(2..150), time: random.time(300..2000) },
            13 => Blow::Upgrade,
            14 => Blow::KillPgbench,
            _ => {
                let days = 1 + random.below(400) as i64;
                let seconds = if random.once_in(2) { days * 86_400 } else { -days * 3600 };
                Blow::Clock { seconds, time: random.time(300..3000) }
            }
        }
    }

    /// What is counted together.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Blow::KillWorker { .. } => "workers killed",
            Blow::StopWorker { .. } => "workers stopped for a while",
            Blow::BuryWorker { .. } => "workers stopped for longer than the lease",
            Blow::CrashDatabase => "immediate stops of the primary",
            Blow::LosePrimary => "primaries lost, standbys promoted",
            Blow::EndBackends { .. } => "backends ended",
            Blow::Connections { fate: Fate::Cut, .. } => "times connections were cut",
            Blow::Connections { .. } => "times connections were deaf or half closed",
            Blow::Delay { .. } => "times the network was slow",
            Blow::FillVolume { .. } => "times the WAL volume was full",
            Blow::Clock { .. } => "clock jumps",
            Blow::Upgrade => "rolling restarts to another version",
            Blow::KillPgbench => "pgbenches killed",
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "seed {}: {:.1} s", self.seed, self.length.as_secs_f64())?;
        for (is, what) in [
            (self.pooled, "pgbouncer in between"),
            (self.small_volume, "WAL on a small volume"),
            (self.wrong_clock, "wrong clocks"),
            (self.short_lease, "a lease of 2 s"),
        ] {
            if is {
                write!(f, ", {what}")?;
            }
        }
        for (at, blow) in &self.blows {
            write!(f, "\n  {:.1} s {blow:?}", at.as_secs_f64())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Plan;

    #[test]
    fn a_seed_means_one_plan() {
        assert_eq!(Plan::draw(7).to_string(), Plan::draw(7).to_string());
        assert_ne!(Plan::draw(7).to_string(), Plan::draw(8).to_string());
    }
}
