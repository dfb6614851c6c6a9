//! The books: what was counted in the end, and whether it is right.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::json;
use sqlx::PgPool;

use crate::front::{Kind, Way, kind, order, way};

/// What happened to the shop while it worked.
#[derive(Debug, Default)]
pub(crate) struct Mishaps {
    pub(crate) workers_killed: u64,
    pub(crate) database_crashes: u64,
    pub(crate) runs_recovered: u64,
    /// From the SIGKILL until the last run of that worker was claimed again or had ended.
    pub(crate) slowest_recovery: Duration,
}

/// A line of the books.
struct Line {
    name: &'static str,
    value: String,
    /// `None`: a figure, nothing to check.
    right: Option<bool>,
    note: String,
}

/// All lines.
pub(crate) struct Books(Vec<Line>);

impl Books {
    /// Counts, from the database and the payment service's ledger.
    pub(crate) async fn keep(
        pool: &PgPool,
        ledger: &Path,
        requests: u64,
        orders: u64,
        mishaps: &Mishaps,
        elapsed: Duration,
    ) -> Result<Books> {
        let placed = (1..=orders).filter(|id| way(*id) != Way::RolledBack).count() as i64;
        let imported = (1..=orders).filter(|id| way(*id) == Way::Imported).count() as i64;
        let rolled_back = orders as i64 - placed;
        let unapproved = of_kind(orders, Kind::Unapproved).count() as i64;
        let unshippable = of_kind(orders, Kind::Unshippable).count() as i64;
        let sold_orders = placed - unapproved - unshippable;
        let count = async |sql: &'static str| -> Result<i64> {
            sqlx::query_scalar(sql).fetch_one(pool).await.context(sql)
        };
        let mut books = Books(Vec::new());

        let there = count("select count(*) from orders").await?;
        books.check("orders placed", there, there == placed, "in transactions that also enqueued");
        let by_trigger = count("select count(*) from orders where imported").await?;
        books.check("of these by plain SQL", by_trigger, by_trigger == imported, "a trigger enqueued");
        let ghosts = count(
            "select count(*) from ambo.run r where not exists
             (select from orders o where r.key = 'order-' || o.id)",
        )
        .await?;
        books.check(
            "orders rolled back",
            rolled_back,
            ghosts == 0,
            &format!("runs without an order: {ghosts}"),
        );
        let fulfilled = count("select count(*) from ambo.outcome where status = 'succeeded'").await?;
        let runs = count("select count(*) from ambo.run").await?;
        books.check(
            "orders fulfilled",
            fulfilled,
            fulfilled == sold_orders && runs == placed,
            "one run each",
        );
        books.check_kinds(pool, orders).await?;

        books.check_ledger(ledger, requests, orders)?;

        let wrong_items = count(
            "select count(*) from item i where i.remaining <> i.stocked
             - coalesce((select sum(o.quantity) from orders o where o.item = i.id
                         and not exists (select from given_back g where g.order_id = o.id)), 0)",
        )
        .await?;
        let sold = count("select coalesce(sum(stocked - remaining), 0)::bigint from item").await?;
        books.check(
            "units taken from stock",
            sold,
            wrong_items == 0,
            &format!("items off: {wrong_items} of 20"),
        );
        let shipped = count("select count(*) from shipment").await?;
        let distinct = count("select count(distinct order_id) from shipment").await?;
        books.check("shipments", shipped, shipped == sold_orders && distinct == sold_orders, "one each");
        let left =
            count("select (select count(*) from ambo.claim) + (select count(*) from ambo.ready)").await?;
        books.check("runs left over", left, left == 0, "");

        books.figure("workers killed", mishaps.workers_killed, "by SIGKILL");
        books.figure("database crashes", mishaps.database_crashes, "by SIGKILL, all processes");
        let slowest = mishaps.slowest_recovery;
        books.check(
            "runs recovered",
            mishaps.runs_recovered as i64,
            slowest <= Duration::from_secs(5),
            &format!("slowest {:.1} s after the kill, allowed 5 s", slowest.as_secs_f64()),
        );
        let rate = fulfilled as f64 / elapsed.as_secs_f64();
        books.figure(
            "runs a second",
            rate as u64,
            &format!("{:.1} s, mishaps included", elapsed.as_secs_f64()),
        );
        Ok(books)
    }

    /// The orders that waited for an approval, and those that could not be shipped: by the ids that must be there.
    async fn check_kinds(&mut self, pool: &PgPool, orders: u64) -> Result<()> {
        let are_all = |of: Kind, found: Vec<i64>| {
            (found.len() as i64, found.into_iter().eq(of_kind(orders, of).map(|id| id as i64)))
        };
        let failed = async |of: Kind, error: &str| -> Result<(i64, bool)> {
            let sql = "select o.id from orders o join ambo.run r on r.key = 'order-' || o.id
                 join ambo.outcome e on e.run_id = r.id join given_back g on g.order_id = o.id
                 where e.status = 'failed' and e.error::text like $1 order by 1";
            let found = sqlx::query_scalar(sql).bind(error).fetch_all(pool).await.context(sql)?;
            Ok(are_all(of, found))
        };
        let sql = "select o.id from orders o join ambo.run r on r.key = 'order-' || o.id
             join ambo.outcome e on e.run_id = r.id join shipment s on s.order_id = o.id
             where o.approved and e.status = 'succeeded' order by 1";
        let approved = sqlx::query_scalar(sql).fetch_all(pool).await.context(sql)?;
        let (approved, right) = are_all(Kind::Approved, approved);
        self.check("orders approved", approved, right, "by a signal in a transaction; then shipped");
        let (timed_out, right) = failed(Kind::Unapproved, "%AMBO042%").await?;
        self.check("orders timed out", timed_out, right, "nobody approved; their stock was given back");
        let (compensated, right) = failed(Kind::Unshippable, "%no carrier%").await?;
        self.check("orders compensated", compensated, right, "not shippable; their stock was given back");
        Ok(())
    }

    /// A refund is a line with less than nothing.
    fn check_ledger(&mut self, ledger: &Path, requests: u64, orders: u64) -> Result<()> {
        let text = std::fs::read_to_string(ledger).context("the ledger")?;
        let mut keys = HashSet::new();
        let (mut charges, mut refunds) = (Vec::new(), Vec::new());
        for line in text.lines() {
            let mut words = line.split_whitespace().skip(1);
            keys.insert(words.next().unwrap_or("").to_owned());
            let cents: i64 = words.next().unwrap_or("").parse().context("a line of the ledger")?;
            if cents < 0 { refunds.push(-cents) } else { charges.push(cents) }
        }
        let sorted = |mut cents: Vec<i64>| {
            cents.sort_unstable();
            cents
        };
        let to_refund: Vec<i64> = of_kind(orders, Kind::Unshippable).map(|id| order(id).cents).collect();
        let to_charge = (1..=orders)
            .filter(|id| way(*id) != Way::RolledBack && kind(*id) != Kind::Unapproved)
            .map(|id| order(id).cents)
            .collect();
        let (charged, refunded) = (charges.len(), refunds.len());
        let unique = keys.len() == charged + refunded;
        let repeated = requests as i64 - (charged + refunded) as i64;
        let right = unique && sorted(charges) == sorted(to_charge);
        self.check(
            "cards charged",
            charged as i64,
            right,
            &format!("once each; {repeated} more requests came"),
        );
        let right = unique && sorted(refunds) == sorted(to_refund);
        self.check("charges refunded", refunded as i64, right, "once each, for what was not shippable");
        Ok(())
    }

    fn check(&mut self, name: &'static str, value: i64, right: bool, note: &str) {
        self.0.push(Line { name, value: value.to_string(), right: Some(right), note: note.to_owned() });
    }

    fn figure(&mut self, name: &'static str, value: u64, note: &str) {
        self.0.push(Line { name, value: value.to_string(), right: None, note: note.to_owned() });
    }

    /// Whether every line that can be wrong is right.
    pub(crate) fn all_right(&self) -> bool {
        self.0.iter().all(|line| line.right != Some(false))
    }

    /// Prints the table, or one JSON object.
    pub(crate) fn print(&self, as_json: bool) -> Result<()> {
        if as_json {
            let lines: serde_json::Map<_, _> = self
                .0
                .iter()
                .map(|line| (line.name.replace(' ', "_"), json!({"value": line.value, "right": line.right})))
                .collect();
            println!("{}", json!({"all_right": self.all_right(), "lines": lines}));
            return Ok(());
        }
        println!();
        for line in &self.0 {
            let mark = match line.right {
                Some(true) => "ok",
                Some(false) => "WRONG",
                None => "",
            };
            println!("{:<24} {:>8}  {:<5}  {}", line.name, line.value, mark, line.note);
        }
        println!(
            "\n{}",
            if self.all_right() { "Both or neither: the books are right." } else { "THE BOOKS ARE WRONG." }
        );
        Ok(())
    }
}

/// The orders of a kind that were not rolled back, in order.
fn of_kind(orders: u64, of: Kind) -> impl Iterator<Item = u64> {
    (1..=orders).filter(move |id| way(*id) != Way::RolledBack && kind(*id) == of)
}
