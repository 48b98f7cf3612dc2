//! Measured plans: where a user asks for it, the best plan of a problem is measured once and kept on disk.
//!
//! [`Plan::select`] chooses without measuring, and that is what runs by default. [`tune`] times every candidate on the
//! device, over weights that no cache holds, and stores the fastest in `CubeCL`'s autotune persistence: the database of
//! the active `cubecl::environment`, where the tuning results of other kernels lie too. From then on [`crate::qgemm`]
//! finds it, in this process and in later ones. Nothing is ever measured unless [`tune`] is called, and it refuses to
//! while a graph is being captured; finding a stored plan is a lookup in memory, and the database is opened once for a
//! device, if there is one.
//!
//! A plan is stored for the device by its name and runtime, n, k, bits, group, type and a power of two of rows; a bias
//! or a gate changes nothing. It is used only where [`Plan::validate`] accepts it. Results of other plans may differ in their last bits, since sums
//! are taken in another order: where bits must not depend on the machine's history, [`forget`].

use crate::launch::{DeviceKey, device_key, limits};
use crate::measure::{Run, Workload};
use crate::{Dtype, Error, Format, Limits, Plan, Problem, Result};
use cubecl::environment::{self, CacheOption, Namespace, Store, StoreOptions};
use cubecl::prelude::Client;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, PoisonError, RwLock};

/// A plan that was measured to be the fastest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tuned {
    /// The plan.
    pub plan: Plan,
    /// Of one launch of it, in the median.
    pub nanoseconds: u64,
    /// Of one launch of what [`Plan::select`] chooses.
    pub selected_nanoseconds: u64,
}

/// Measures the candidates for `problem`, rounded up to the rows that a plan is stored for, and stores the fastest of
/// those whose result is right. `progress` sees each; a candidate that the device refuses is passed over.
///
/// # Errors
/// [`Error::Capturing`] inside a graph capture, before anything is launched; what [`Problem::validate`] refuses; the
/// last candidate's error if none of them ran.
pub fn tune(
    client: &Client,
    problem: &Problem,
    mut progress: impl FnMut(&Plan, &Result<Run>),
) -> Result<Tuned> {
    if client.is_capturing() {
        return Err(Error::Capturing);
    }
    let problem = Problem { m: rows(problem.m), bias: false, gate: None, ..*problem };
    let limits = limits(client);
    let selected = Plan::select(&problem, &limits)?;
    let workload = Workload::new(client, &problem)?;
    let mut found: Option<Tuned> = None;
    let (mut selected_nanoseconds, mut failed) = (None, None);
    for plan in Plan::candidates(&problem, &limits)? {
        let run = workload.time(&plan);
        progress(&plan, &run);
        match run {
            Ok(run) if run.is_right() => {
                let nanoseconds = (run.timing.median * 1e9).round() as u64;
                if plan == selected {
                    selected_nanoseconds = Some(nanoseconds);
                }
                if found.is_none_or(|best| nanoseconds < best.nanoseconds) {
                    found = Some(Tuned { plan, nanoseconds, selected_nanoseconds: nanoseconds });
                }
            }
            Ok(_) => {}
            Err(error) => failed = Some(error),
        }
    }
    let Some(mut tuned) = found else {
        let reason = "every candidate computed something else".into();
        return Err(failed.unwrap_or(Error::Device { during: "measured plans", reason }));
    };
    tuned.selected_nanoseconds = selected_nanoseconds.unwrap_or(tuned.nanoseconds);
    let key = Key::of(&problem);
    let mut store = open(&limits);
    // A store edits nothing: what was measured before goes first.
    store.purge_key(&key);
    store.insert(key, tuned).map_err(|e| Error::Device {
        during: "stored a measured plan",
        reason: e.reason().to_string(),
    })?;
    reload(client, &store);
    Ok(tuned)
}

/// What was measured for problems like `problem`, if anything was.
pub fn tuned(client: &Client, problem: &Problem) -> Option<Tuned> {
    let table = table(client);
    table.plans.get(&Key::of(problem)).copied()
}

/// Forgets everything measured on `client`'s device, on disk too.
pub fn forget(client: &Client) {
    if path().exists() {
        let mut store = open(&limits(client));
        store.purge();
        reload(client, &store);
    }
}

/// The database that measured plans are kept in.
pub fn path() -> PathBuf {
    environment::path()
}

/// The plan that [`crate::qgemm`] runs `problem` with: the measured one if there is one, else the selected one; inside
/// a graph capture, the one that is selected among those that can be captured.
///
/// # Errors
/// What [`Problem::validate`] refuses.
pub fn plan(client: &Client, problem: &Problem) -> Result<Plan> {
    let limits = limits(client);
    let plan = match tuned(client, problem) {
        Some(tuned) if tuned.plan.validate(problem, &limits).is_ok() => tuned.plan,
        _ => Plan::select(problem, &limits)?,
    };
    if matches!(plan, Plan::Dense(_)) && client.is_capturing() {
        return Plan::select(problem, &Limits { dense: false, ..(*limits).clone() });
    }
    Ok(plan)
}

/// The rows that a plan for `m` rows is measured with.
fn rows(m: usize) -> usize {
    // More rows than these take many turns of the same tiles.
    const MOST: usize = 4096;
    m.clamp(1, MOST).next_power_of_two()
}

/// What a plan is stored under, in the namespace of its device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Key {
    rows: usize,
    n: usize,
    k: usize,
    format: Format,
    dtype: Dtype,
}

impl Key {
    fn of(problem: &Problem) -> Self {
        let Problem { m, n, k, format, dtype, .. } = *problem;
        Self { rows: rows(m), n, k, format, dtype }
    }
}

/// What is known of one device.
#[derive(Default)]
struct Table {
    /// Of the environment that it was read from.
    generation: u32,
    plans: HashMap<Key, Tuned>,
}

static TABLES: LazyLock<RwLock<HashMap<DeviceKey, Arc<Table>>>> = LazyLock::new(RwLock::default);

fn table(client: &Client) -> Arc<Table> {
    let (device, generation) = (device_key(client), environment::generation());
    let known = TABLES.read().unwrap_or_else(PoisonError::into_inner).get(&device).cloned();
    match known {
        Some(table) if table.generation == generation => table,
        _ if path().exists() => reload(client, &open(&limits(client))),
        _ => remember(device, Table { generation, plans: HashMap::new() }),
    }
}

fn reload(client: &Client, store: &Store<Key, Tuned>) -> Arc<Table> {
    let generation = environment::generation();
    let mut plans = HashMap::new();
    store.for_each(|key, tuned| {
        plans.insert(*key, *tuned);
    });
    remember(device_key(client), Table { generation, plans })
}

fn remember(device: DeviceKey, table: Table) -> Arc<Table> {
    let table = Arc::new(table);
    let mut tables = TABLES.write().unwrap_or_else(PoisonError::into_inner);
    tables.insert(device, table.clone());
    table
}

fn open(limits: &Limits) -> Store<Key, Tuned> {
    // Another version has other kernels, of which nothing is known.
    let version = env!("CARGO_PKG_VERSION");
    let path = format!("{}/{}/flute-qgemm-{version}", limits.runtime, limits.name);
    let namespace = Namespace::scoped("autotune", path);
    Store::new(StoreOptions::new().storage(namespace).cache(CacheOption::Eager))
}
