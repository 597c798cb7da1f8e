//! Baselines of many devices and their rollouts as the API's JSON.

use serde::Serialize;
use utoipa::ToSchema;

use super::views::ProgramView;
use crate::rollouts::{Facts, Plan, Stage};
use crate::store::{BaselineRow, RolloutDevice, RolloutRow};

#[derive(Serialize, ToSchema)]
#[schema(as = Baseline)]
pub(super) struct BaselineView<'a> {
    id: u64,
    /// The group it is for; null for the whole fleet.
    group: Option<&'a str>,
    program: ProgramView<'a>,
    generation: u64,
    /// Of the bundle.
    size_bytes: u32,
    created_unix_ms: u64,
    by: &'a str,
    /// From how many windows it was trained.
    windows: u64,
    /// Of how many devices.
    devices: u64,
}

impl<'a> From<&'a BaselineRow> for BaselineView<'a> {
    fn from(row: &'a BaselineRow) -> Self {
        Self {
            id: row.id,
            group: row.group.as_deref(),
            program: ProgramView::new(&row.program),
            generation: row.generation,
            size_bytes: row.size,
            created_unix_ms: row.created_ms,
            by: &row.by,
            windows: row.windows,
            devices: row.devices,
        }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = Rollout)]
pub(super) struct RolloutView<'a> {
    id: u64,
    baseline: u64,
    /// The group it is for; null for the whole fleet.
    group: Option<&'a str>,
    program: ProgramView<'a>,
    generation: u64,
    plan: &'a Plan,
    stage: Stage,
    /// Nothing goes on by itself.
    paused: bool,
    by: &'a str,
    created_unix_ms: u64,
    /// When this stage began.
    stage_unix_ms: u64,
    /// What it waits for, or why it ended.
    reason: &'a str,
}

impl<'a> From<&'a RolloutRow> for RolloutView<'a> {
    fn from(row: &'a RolloutRow) -> Self {
        Self {
            id: row.id,
            baseline: row.baseline,
            group: row.group.as_deref(),
            program: ProgramView::new(&row.program),
            generation: row.generation,
            plan: &row.plan,
            stage: row.stage,
            paused: row.paused,
            by: &row.by,
            created_unix_ms: row.created_ms,
            stage_unix_ms: row.stage_ms,
            reason: &row.reason,
        }
    }
}

/// What the guard of a rollout sees since its stage began.
#[derive(Serialize, ToSchema)]
#[schema(as = RolloutFacts)]
struct FactsView {
    /// Devices that were offered the baseline.
    offered: u64,
    /// Of these, those that use it.
    active: u64,
    /// Of these, those that do not, or no longer.
    refused: u64,
    /// Devices that use it and fell silent, or whose agent was killed.
    unwell: u64,
    /// Alerts of the program by this baseline.
    alerts: u64,
    /// Devices that run the program and are not part of it.
    others: u64,
    /// Alerts of the program on these.
    others_alerts: u64,
}

/// One rollout with everything that is known about it.
#[derive(Serialize, ToSchema)]
pub(super) struct RolloutPage<'a> {
    pub(super) rollout: RolloutView<'a>,
    facts: FactsView,
    devices: Vec<RolloutDeviceView<'a>>,
}

impl<'a> RolloutPage<'a> {
    pub(super) fn new(row: &'a RolloutRow, facts: &Facts, devices: &'a [RolloutDevice]) -> Self {
        let facts = FactsView {
            offered: facts.offered,
            active: facts.active,
            refused: facts.refused,
            unwell: facts.unwell,
            alerts: facts.alerts,
            others: facts.others,
            others_alerts: facts.others_alerts,
        };
        let devices = devices.iter().map(|device| RolloutDeviceView {
            device: &device.device,
            canary: device.canary,
            offered_unix_ms: device.offered_ms,
            active_unix_ms: device.active_ms,
            refused: device.refused.as_deref(),
        });
        Self { rollout: row.into(), facts, devices: devices.collect() }
    }
}

#[derive(Serialize, ToSchema)]
#[schema(as = RolloutDevice)]
struct RolloutDeviceView<'a> {
    device: &'a str,
    /// It is one of the first.
    canary: bool,
    offered_unix_ms: u64,
    /// When it said that it uses the baseline; 0 for never.
    active_unix_ms: u64,
    /// Why it does not, or no longer.
    refused: Option<&'a str>,
}
