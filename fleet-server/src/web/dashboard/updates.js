// Updates of the agents: program files, and how far they are on their way.

import { ask, may } from "/dashboard/server.js";
import { again, button, choice, el, field, say, seldom, share, table, time } from "/dashboard/dom.js";
import { forWhom } from "/dashboard/rollouts.js";

const AGAIN_MS = 1000;

export async function updatesPage(_, query) {
  const before = query.get("before") || "";
  const [{ builds }, { updates, next_before }] = await Promise.all([ask("/builds"), ask("/updates?limit=50" + (before && "&before=" + before))]);
  const versions = [...new Set(builds.map((one) => one.version))];
  const version = choice(versions.map((one) => [one, one]), versions[0]), group = el("input", { placeholder: "the fleet" });
  const percent = el("input", { type: "number", min: 1, max: 100, value: 10 }), hours = el("input", { type: "number", min: 0, step: "any", value: 24 });
  const begin = may("admin") && versions.length > 0 && el("p", { class: "filters" }, field("To version", version), field("Of group", group),
    field("First devices, %", percent), field("Watched for hours", hours), button("Update them", async () => {
      const whose = group.value.trim();
      if (!confirm("Update the agents of " + (whose ? "group " + whose : "the whole fleet") + " to version " + version.value + "?")) return;
      const plan = { canary_percent: Number(percent.value), wait_s: Math.max(10, Math.round(Number(hours.value) * 3600)) };
      await ask("/updates", { sent: { version: version.value, group: whose || null, plan } });
      say("the first devices are given it");
      again();
    }));
  const node = el("div", {}, begin || null,
    table(["Update", "Version", "For", "Stage", "Why", "By", "Begun"], updates.map((one) => [
      el("a", { href: "#/updates/" + one.id }, "Update " + one.id), one.version, forWhom(one), stage(one), one.reason, one.by, time(one.created_unix_ms),
    ]), "No agent was updated from here yet."),
    updates.length === 50 && el("a", { href: "#/updates?before=" + next_before }, "Older ones"),
    el("section", {}, el("h2", {}, "Program files"), table(["Version", "Processor", "Size", "SHA-256", "By", "Since", ""], builds.map((one) => [
      one.version, one.arch, Math.ceil(one.size_bytes / 1024) + " KiB", one.sha256.slice(0, 16) + "…", one.by, time(one.created_unix_ms),
      may("admin") ? button("Remove", async () => {
        await ask("/builds/" + one.id, { method: "DELETE" });
        say("the program file is removed");
        again();
      }) : "",
    ]), "None: behaveguard-fleet build add brings them to the server.")));
  const soon = seldom(node, AGAIN_MS, again);
  return { title: "Updates", node, take(name) { if (name === "update") soon(); } };
}

function stage(one) {
  return el("span", { class: "stage", "data-stage": one.stage }, one.stage.replace("_", " ") + (one.paused ? ", paused" : ""));
}

export async function updatePage(id) {
  const { update, devices, members } = await ask("/updates/" + id);
  const act = (action, question) => async () => {
    if (question && !confirm(question)) return;
    await ask("/updates/" + id, { method: "PATCH", sent: { action } });
    say("done");
    again();
  };
  const underWay = update.stage === "canary" || update.stage === "everyone";
  const actions = may("admin") && el("p", { class: "filters" },
    underWay && (update.paused ? button("Resume", act("resume")) : button("Pause", act("pause"))),
    update.stage === "canary" && button("Everyone now", act("promote", "Go on without waiting?")),
    underWay && button("Stop", act("stop", "Give it to no further device?"), { class: "bad" }),
    update.stage !== "taken_back" && button("Take it back", act("take_back", "Every device runs its package's program again. Go on?"), { class: "bad" }));
  const node = el("div", {}, el("p", { class: "summary" }, stage(update), " ", update.reason || "It has just begun."), actions || null,
    el("dl", {}, [
      ["Version", update.version], ["For", forWhom(update)], ["Begun", [time(update.created_unix_ms), " by " + update.by]],
      ["First devices", update.plan.canary_percent + " %, watched for " + update.plan.wait_s + " s"], ["May fail then", update.plan.failed_percent + " %"],
      ["Run it", [devices.runs + " of " + devices.given, share(devices.given ? devices.runs / devices.given : 0)]],
      ["Refused", String(devices.refused)], ["Failed", String(devices.failed)],
    ].flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, ...[value].flat())])),
    el("section", {}, el("h2", {}, "Devices"), table(["Device", "", "Given", "How far", "Why"], members.map((one) => [
      el("a", { href: "#/devices/" + one.device }, one.device), one.canary ? "first" : "", time(one.offered_unix_ms), one.state, one.reason || "",
    ]), "None yet.")));
  const soon = seldom(node, AGAIN_MS, again);
  return { title: "Update " + id, node, take(name, data) { if (name === "device" || (name === "update" && data.id === Number(id))) soon(); } };
}
