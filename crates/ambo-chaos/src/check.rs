//! The books afterwards: what must be true when everybody is back and the last run has ended.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

use crate::client::Receipts;
use crate::pair::Pair;
use crate::witness::{Effect, Testimony};

/// What is counted in the database: each must be 0.
const COUNTS: [(&str, &str); 19] = [
    (
        "money is not conserved in the tables of pgbench",
        "select (a <> t)::int + (t <> b)::int + (b <> h)::int from
             (select coalesce(sum(abalance), 0) as a from pgbench_accounts) a,
             (select coalesce(sum(tbalance), 0) as t from pgbench_tellers) t,
             (select coalesce(sum(bbalance), 0) as b from pgbench_branches) b,
             (select coalesce(sum(delta), 0) as h from pgbench_history) h",
    ),
    (
        "accounts, tellers and branches have not what was posted to them",
        "select (select count(*) from pgbench_accounts a left join
                     (select aid, sum(delta) as delta from pgbench_history group by aid) h using (aid)
                 where a.abalance <> coalesce(h.delta, 0))
              + (select count(*) from pgbench_tellers t left join
                     (select tid, sum(delta) as delta from pgbench_history group by tid) h using (tid)
                 where t.tbalance <> coalesce(h.delta, 0))
              + (select count(*) from pgbench_branches b left join
                     (select bid, sum(delta) as delta from pgbench_history group by bid) h using (bid)
                 where b.bbalance <> coalesce(h.delta, 0))",
    ),
    (
        "enqueues that were committed have no run",
        "select count(*) from placed p where not exists (select from ambo.run r where r.id = p.run)",
    ),
    (
        "enqueues that were committed have a run with another",
        "select count(*) - count(distinct run) from placed",
    ),
    (
        "runs of enqueues that were not committed",
        "select count(*) from ambo.run r where r.workflow = 'settle' and r.key is null
             and not exists (select from placed p where p.run = r.id)",
    ),
    (
        "runs have not ended",
        "select count(*) from ambo.run r where not exists (select from ambo.outcome o where o.run_id = r.id)",
    ),
    ("runs did not succeed", "select count(*) from ambo.outcome where status <> 'succeeded'"),
    ("outcomes without a run", "select count(*) from ambo.outcome o where not exists (select from ambo.run r where r.id = o.run_id)"),
    (
        "transaction steps took effect not exactly once",
        "select count(*) from (
             select r.id, s.step from ambo.run r
             join (values ('settle', 'post'), ('leg', 'post'), ('partner', 'hello')) s (workflow, step)
                 on s.workflow = r.workflow
             union all
             select r.id, 'go' from ambo.run r where r.workflow = 'settle' and (r.input ->> 'pair')::bool) e
         where 1 <> (select count(*) from posting p where p.run = e.id and p.step = e.step)",
    ),
    (
        "transaction steps of no run took effect",
        "select count(*) from posting p where not exists (select from ambo.run r where r.id = p.run)",
    ),
    (
        "money was moved otherwise than was asked",
        "select count(*) from posting p join ambo.run r on r.id = p.run
             where p.step = 'post' and p.delta <> (r.input ->> 'delta')::int",
    ),
    (
        "runs returned something else than their legs have moved",
        "select count(*) from ambo.run r join ambo.outcome o on o.run_id = r.id
             where r.workflow = 'settle' and o.output::text::int <>
                 (select coalesce(sum(p.delta), 0) from ambo.child c join ambo.run l on l.id = c.child_id
                  join posting p on p.run = c.child_id and p.step = 'post'
                  where c.run_id = r.id and l.workflow = 'leg')",
    ),
    (
        "runs have not the children that they were asked to have",
        "select count(*) from ambo.run r where r.workflow = 'settle' and
             (select count(*) from ambo.child c where c.run_id = r.id) <>
             (r.input ->> 'legs')::int + (r.input ->> 'pair')::bool::int",
    ),
    (
        "runs have not the one signal that was sent to them",
        "select count(*) from ambo.run r where (r.workflow = 'partner' or r.workflow = 'settle' and (r.input ->> 'pair')::bool) and
             1 <> (select count(*) from ambo.signal s where s.run_id = r.id)",
    ),
    (
        // All facts are dated by the beginning of the transaction that wrote them. It has committed before its claim could be taken
        // away, and the next attempt begins after that: nothing is exempt, and not even the same moment is right.
        "facts were recorded by an attempt after those of a later one",
        "select count(*) from (
             select f.attempt < max(f.attempt) over (partition by f.run_id order by f.at, f.attempt desc) as stale
             from (select run_id, attempt, recorded_at as at from ambo.checkpoint
                   union all select run_id, attempt, ended_at from ambo.outcome) f) f
         where f.stale",
    ),
    (
        "facts were recorded after their run had ended",
        "select count(*) from ambo.checkpoint c join ambo.outcome o on o.run_id = c.run_id where c.recorded_at > o.ended_at",
    ),
    ("things are left over", LEFT),
    ("dead workers are not buried", "select count(*) from ambo.worker where dead_at is not null"),
    (
        "a run has more checkpoints than its code has calls",
        "select count(*) from ambo.run r where
             (select count(*) from ambo.checkpoint c where c.run_id = r.id and c.name not like 'ambo:%') > 30",
    ),
];

/// What the engine holds while something is to be done.
pub(crate) const LEFT: &str = "select (select count(*) from ambo.ready) + (select count(*) from ambo.claim)
    + (select count(*) from ambo.timer) + (select count(*) from ambo.wake)
    + (select count(*) from ambo.cancel_request) + (select count(*) from ambo.transaction_marker)";

/// Of each of these there is some in every round, whatever befell it.
const ASKED: [&str; 5] = ["runs", "transaction steps", "steps", "effects", "orders acknowledged"];
const ASKED_MIN: u64 = 10;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Findings {
    pub(crate) violations: Vec<String>,
    /// How much work there was: name and number.
    pub(crate) figures: BTreeMap<&'static str, u64>,
}

impl Findings {
    fn violation(&mut self, count: u64, what: impl std::fmt::Display) {
        if count > 0 {
            self.violations.push(format!("{count} × {what}"));
        }
    }
}

/// Looks at everything.
pub(crate) fn check(
    pair: &Pair,
    receipts: &Receipts,
    testimony: &Testimony,
    folder: &Path,
) -> Result<Findings> {
    let effects = &testimony.effects;
    let mut findings = Findings::default();
    let number = |sql: &str| -> Result<u64> {
        let answer = pair.ask(sql)?.context("no answer")?;
        answer.parse().with_context(|| format!("{answer} is no number: {sql}"))
    };
    for (what, sql) in COUNTS {
        findings.violation(number(sql)?, what);
    }
    check_receipts(pair, receipts, &mut findings)?;
    check_effects(pair, effects, &mut findings)?;
    check_fence(pair, testimony, &mut findings)?;
    check_logs(folder, &mut findings)?;
    for (what, sql) in [
        ("runs", "select count(*) from ambo.run"),
        ("transaction steps", "select count(*) from posting"),
        ("runs claimed more than once", "select count(*) from ambo.outcome where attempt > 1"),
        ("orders by pgbench", "select count(*) from placed where source = 'pgbench'"),
    ] {
        findings.figures.insert(what, number(sql)?);
    }
    let refused = effects.iter().filter(|effect| !effect.accepted).count();
    for (what, count) in [
        ("effects", effects.len()),
        ("effects of fenced attempts, refused", refused),
        ("orders acknowledged", receipts.committed.len() + receipts.keyed.len()),
        ("orders rolled back", receipts.rolled_back.len()),
        ("orders whose answer was lost", receipts.unknown as usize),
    ] {
        findings.figures.insert(what, count as u64);
    }
    for what in ASKED {
        if findings.figures.get(what).is_none_or(|count| *count < ASKED_MIN) {
            findings.violation(1, format!("fewer than {ASKED_MIN} {what}: the round has shown nothing"));
        }
    }
    Ok(findings)
}

/// What the clients were told is so.
fn check_receipts(pair: &Pair, receipts: &Receipts, findings: &mut Findings) -> Result<()> {
    let rows = pair.rows("select mark from placed where source = 'customer'")?;
    let placed: std::collections::BTreeSet<String> =
        rows.into_iter().filter_map(|row| row.into_iter().next().flatten()).collect();
    let lost = receipts.committed.difference(&placed).count();
    findings.violation(lost as u64, "orders whose commit was acknowledged are gone");
    let kept = receipts.rolled_back.intersection(&placed).count();
    findings.violation(kept as u64, "orders that were rolled back are there");
    let rows = pair.rows("select key, id::text from ambo.run where key is not null")?;
    let mut keyed: HashMap<String, Vec<String>> = HashMap::new();
    for row in rows {
        if let [Some(key), Some(run)] = &row[..] {
            keyed.entry(key.clone()).or_default().push(run.clone());
        }
    }
    let wrong =
        |(key, run): &&(String, ambo::RunId)| keyed.get(key).is_none_or(|runs| *runs != [run.to_string()]);
    let wrong = receipts.keyed.iter().filter(wrong).count();
    findings.violation(wrong as u64, "keys do not name the one run that was acknowledged");
    let twice = keyed.values().filter(|runs| runs.len() > 1).count();
    findings.violation(twice as u64, "keys name several runs");
    Ok(())
}

/// What the witness has seen agrees with what was recorded.
fn check_effects(pair: &Pair, effects: &[Effect], findings: &mut Findings) -> Result<()> {
    let mut by_step: HashMap<(&str, &str), Vec<&Effect>> = HashMap::new();
    let mut owners: HashMap<(&str, u32), &str> = HashMap::new();
    let (mut shared, mut again) = (0, 0);
    let mut seen = std::collections::HashSet::new();
    for effect in effects {
        by_step.entry((&effect.run, &effect.position)).or_default().push(effect);
        let owner = owners.entry((&effect.run, effect.attempt)).or_insert(&effect.process);
        shared += u64::from(*owner != effect.process);
        again += u64::from(!seen.insert((&effect.run, &effect.position, effect.attempt, effect.number)));
    }
    findings.violation(shared, "effects of one attempt by two processes");
    findings.violation(again, "effects were made twice by one try of a step");
    let steps = "select run_id::text, position, attempt from ambo.checkpoint
        where name in ('notify', 'look again', 'receipt', 'leg', 'went')";
    let (mut none, mut after) = (0, 0);
    let mut recorded = 0;
    let rows = pair.rows(steps)?;
    for row in &rows {
        let [Some(run), Some(position), Some(attempt)] = &row[..] else { continue };
        recorded += 1;
        let attempt: u32 = attempt.parse()?;
        let made = by_step.remove(&(run.as_str(), position.as_str())).unwrap_or_default();
        none += u64::from(!made.iter().any(|effect| effect.accepted && effect.attempt == attempt));
        after += u64::from(made.iter().any(|effect| effect.attempt > attempt));
    }
    findings.figures.insert("steps", recorded);
    findings.violation(none, "steps were recorded by an attempt whose effect the witness has not accepted");
    findings.violation(after, "steps that were recorded ran again");
    findings.violation(by_step.len() as u64, "effects of steps that are not recorded");
    Ok(())
}

/// No attempt has recorded anything since a later one of its run was seen at work. That one was claimed before it was seen,
/// and whatever the earlier one recorded has committed before that, and is dated by the beginning of its transaction.
fn check_fence(pair: &Pair, testimony: &Testimony, findings: &mut Findings) -> Result<()> {
    let facts = "select run_id::text, attempt, (extract(epoch from recorded_at) * 1000000)::bigint from ambo.checkpoint
        union all select run_id::text, attempt, (extract(epoch from ended_at) * 1000000)::bigint from ambo.outcome";
    let mut stale = 0;
    for row in &pair.rows(facts)? {
        let [Some(run), Some(attempt), Some(at)] = &row[..] else { continue };
        let (attempt, at): (u32, i64) = (attempt.parse()?, at.parse()?);
        let Some(seen) = testimony.seen.get(run) else { continue };
        stale += u64::from(seen.range(attempt + 1..).any(|(_, first)| *first <= at));
    }
    findings.violation(stale, "facts were recorded by an attempt after a later one was seen at work");
    Ok(())
}

/// What the workers said of themselves.
fn check_logs(folder: &Path, findings: &mut Findings) -> Result<()> {
    for entry in fs::read_dir(folder)?.flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if !(name.starts_with('w') && name.ends_with(".log")) {
            continue;
        }
        let log = fs::read(&path)?;
        let log = String::from_utf8_lossy(&log);
        for line in log.lines() {
            if line.contains("this worker was declared dead") {
                *findings.figures.entry("workers that woke and were dead").or_default() += 1;
            }
            if line.contains(" ERROR ") || line.contains("panicked at") {
                findings.violations.push(format!("{name}: {line}"));
            }
        }
    }
    Ok(())
}
