// Baselines: how far each is, training one anew for a device or for many, and rolling it out.

import { ask, may } from "/dashboard/server.js";
import { button, el, say, seldom, share, table, time } from "/dashboard/dom.js";
import { beginForm, forWhom } from "/dashboard/rollouts.js";

const AGAIN_MS = 3000;

export async function baselinesPage() {
  const place = el("div");
  const load = async () => {
    const [{ training }, made] = await Promise.all([ask("/training"), ask("/baselines")]);
    // Somebody fills a form in here.
    if (place.querySelector("details[open]")) return;
    place.replaceChildren(
      el("section", {}, el("h2", {}, "Of many devices"), ofMany(made, load)),
      el("section", {}, el("h2", {}, "Of single devices"), ofDevices(training, load)));
  };
  await load();
  const soon = seldom(place, AGAIN_MS, load);
  return {
    title: "Baselines", node: place,
    take(name) {
      if (name === "training" || name === "rollout") soon();
    },
  };
}

function ofMany({ baselines, training }, load) {
  const waits = training.map((one) => el("p", { class: one.failure ? "bad" : "quiet" },
    "For " + forWhom(one) + ": " + one.state + (one.failure ? ": " + one.failure : "")));
  return el("div", {}, waits, table(["Program", "For", "Generation", "Trained from", "By", ""], baselines.map((one) => [
    one.program.text, forWhom(one), one.generation,
    [one.windows + " windows of " + one.devices + (one.devices === 1 ? " device, " : " devices, "), time(one.created_unix_ms)], one.by,
    may("admin") ? [beginForm(one.id), button("Remove", async () => {
      await ask("/baselines/" + one.id, { method: "DELETE" });
      say("the baseline is gone");
      await load();
    })] : "",
  ]), "None yet: train one below for a device's group or for the fleet."));
}

function ofDevices(training, load) {
  return table(["Device", "Program", "State", "Windows", "Generation", "Trained", ""], training.map((row) => [
    el("a", { href: "#/devices/" + row.device }, row.device), row.program.text,
    row.refused ? "refused: " + row.refused : row.failure ? "failed: " + row.failure : row.state,
    [row.windows_collected + " of " + row.windows_needed, share(row.windows_collected / row.windows_needed)],
    generation(row), row.trained_unix_s ? time(row.trained_unix_s * 1000) : "",
    may("analyst") ? [trainButton("Train", row, () => ({ device: row.device }), load), " ",
      trainButton("For its group", row, async () => ({ group: (await ask("/devices/" + row.device)).group }), load), " ",
      trainButton("For the fleet", row, () => ({}), load), may("admin") && pinButton(row, load)] : "",
  ]), "No program is learned yet: windows come from devices whose programs are LEARNING, if `samples` of their group's configuration is not 0.");
}

function generation(row) {
  const newest = Math.max(row.generation, row.reported_generation);
  if (!newest) return "none";
  const what = row.reported_generation !== newest ? " offered" : row.refused ? " refused" : " in use";
  return newest + what + (row.pinned ? ", pinned" : "");
}

function trainButton(text, row, whom, load) {
  return button(text, async () => {
    await ask("/training", { sent: { ...await whom(), program_key: row.program.key } });
    say("training " + row.program.text + " is queued");
    await load();
  });
}

function pinButton(row, load) {
  return button(row.pinned ? "Unpin" : "Pin", async () => {
    await ask("/devices/" + row.device + "/pins/" + row.program.key, { method: row.pinned ? "DELETE" : "PUT" });
    say(row.pinned ? "it takes part in rollouts again" : "it keeps what it has");
    await load();
  });
}
