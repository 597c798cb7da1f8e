// Rollouts: a baseline on its way to many devices, what its guard sees, and taking it back.

import { ask, may } from "/dashboard/server.js";
import { again, button, el, field, say, seldom, share, table, time } from "/dashboard/dom.js";

const AGAIN_MS = 1000;
const STAGES = [["canary", "first devices"], ["everyone", "all devices, watched"], ["done", "done"]];

export const forWhom = (one) => one.group === null ? "the fleet" : "group " + one.group;

export async function rolloutsPage(_, query) {
  const before = query.get("before") || "";
  const { rollouts, next_before } = await ask("/rollouts?limit=50" + (before && "&before=" + before));
  const node = el("div", {}, table(["Rollout", "Program", "For", "Stage", "Why", "By", "Begun"], rollouts.map((one) => [
    el("a", { href: "#/rollouts/" + one.id }, "Rollout " + one.id), one.program.text + ", generation " + one.generation, forWhom(one),
    stage(one), one.reason, one.by, time(one.created_unix_ms),
  ]), "Nothing was rolled out yet: a baseline for a group is trained and rolled out from the page Baselines."),
  rollouts.length === 50 && el("a", { href: "#/rollouts?before=" + next_before }, "Older ones"));
  const soon = seldom(node, AGAIN_MS, again);
  return { title: "Rollouts", node, take(name) { if (name === "rollout") soon(); } };
}

function stage(one) {
  return el("span", { class: "stage", "data-stage": one.stage }, one.stage.replace("_", " ") + (one.paused ? ", paused" : ""));
}

export async function rolloutPage(id) {
  const { rollout, facts, devices } = await ask("/rollouts/" + id);
  const act = (action, question) => async () => {
    if (question && !confirm(question)) return;
    await ask("/rollouts/" + id, { method: "PATCH", sent: { action } });
    say("done");
    again();
  };
  const underWay = rollout.stage === "canary" || rollout.stage === "everyone";
  const actions = may("admin") && el("p", { class: "filters" },
    underWay && (rollout.paused ? button("Resume", act("resume")) : button("Pause", act("pause"))),
    underWay && button("Promote now", act("promote", "Go on without waiting?")),
    rollout.stage !== "rolled_back" && button("Roll back", act("roll_back", "Every device goes back to what it had. Go on?"), { class: "bad" }));
  const place = STAGES.findIndex(([name]) => name === rollout.stage);
  const steps = el("ol", { class: "stages" }, STAGES.map(([name, text], n) =>
    el("li", { "data-stage": name === rollout.stage ? "here" : n < place ? "past" : "", "aria-current": name === rollout.stage ? "step" : null }, text)),
  rollout.stage === "rolled_back" && el("li", { "data-stage": "back", "aria-current": "step" }, "rolled back"));
  const plan = rollout.plan;
  const node = el("div", {}, steps, el("p", { class: "summary" }, rollout.reason || "It has just begun."), actions || null,
    el("div", { class: "two" },
      el("section", {}, el("h2", {}, "What"), el("dl", {}, [
        ["Program", rollout.program.text], ["Generation", String(rollout.generation)], ["For", forWhom(rollout)], ["Begun", [time(rollout.created_unix_ms), " by " + rollout.by]],
        ["First devices", plan.canary_percent + " %"], ["Each stage", plan.wait_s + " s at least"], ["Alerts allowed", plan.alerts_per_device + " per device"],
        ["May refuse or be unwell", plan.unwell_percent + " %"],
      ].flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, ...[value].flat())]))),
      el("section", {}, el("h2", {}, "What its guard sees"), el("dl", {}, [
        ["Use it", [facts.active + " of " + facts.offered, share(facts.offered ? facts.active / facts.offered : 0)]],
        ["Refused, or went back", String(facts.refused)], ["Silent, or killed", String(facts.unwell)],
        ["Alerts by it", String(facts.alerts)], ["Alerts elsewhere", facts.others_alerts + " on " + facts.others + " devices"],
      ].flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, ...[value].flat())])))),
    el("section", {}, el("h2", {}, "Devices"), table(["Device", "", "Offered", "In use since"], devices.map((one) => [
      el("a", { href: "#/devices/" + one.device }, one.device), one.canary ? "first" : "", time(one.offered_unix_ms),
      one.refused ? one.refused : one.active_unix_ms ? time(one.active_unix_ms) : "not yet",
    ]), "None.")));
  const soon = seldom(node, AGAIN_MS, again);
  return {
    title: "Rollout " + id, node,
    take(name, data) {
      if (name === "rollout" && data.id === rollout.id) soon();
    },
  };
}

// Asks how a baseline is to be rolled out, and begins.
export function beginForm(baseline) {
  const percent = el("input", { type: "number", min: 1, max: 100, value: 10 });
  const hours = el("input", { type: "number", min: 0.01, max: 720, step: "any", value: 24 });
  return el("details", {}, el("summary", {}, "Roll out"), el("p", { class: "filters" }, field("First devices, %", percent), field("Hours per stage", hours),
    button("Begin", async () => {
      const plan = { canary_percent: Number(percent.value), wait_s: Math.round(Number(hours.value) * 3600) };
      const { id } = await ask("/rollouts", { sent: { baseline, plan } });
      location.hash = "#/rollouts/" + id;
    })));
}
