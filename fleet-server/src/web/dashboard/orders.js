// What devices are asked to do, and the configuration of a group.

import { ask, file, may } from "/dashboard/server.js";
import { again, button, choice, el, field, line, say, table, time } from "/dashboard/dom.js";

const LEVELS = [["debug", "debug"], ["trace", "trace"], ["info", "info"], ["warn", "warn"], ["error", "error"]];

// What a device was asked, and buttons that ask more of it.
export function ordersSection(device, orders, programs) {
  const give = async (order) => {
    await ask("/devices/" + device + "/orders", { sent: { order } });
    say("asked for");
    again();
  };
  const level = choice(LEVELS, "debug"), minutes = el("input", { type: "number", min: 1, max: 1440, value: 10 });
  const program = choice(programs.map((one) => [one.program.key, one.program.text]), programs[0]?.program.key);
  const seconds = el("input", { type: "number", min: 1, max: 3600, value: 120 });
  const pid = el("input", { type: "number", min: 1, max: 4194304, id: "pid" });
  const hours = el("input", { type: "number", min: 1, max: 720, value: 24 });
  const asks = may("analyst") && el("div", {},
    el("p", { class: "filters" }, button("Ask how it is", () => give({ kind: "doctor" })), button("Ask what runs", () => give({ kind: "processes" })),
      field("Process", pid), button("Ask about it", () => give({ kind: "process", pid: Number(pid.value) }))),
    el("p", { class: "filters" }, field("Log from", level), field("Minutes", minutes),
      button("Log more", () => give({ kind: "log_level", level: level.value, for_s: Number(minutes.value) * 60 }))),
    el("p", { class: "filters" }, field("Hours", hours), button("Quarantine it", async () => {
      if (!confirm("Cut " + device + " off from everything but its fleet for " + hours.value + " h? What it forwards for others goes on.")) return;
      await give({ kind: "quarantine", for_s: Number(hours.value) * 3600 });
    }), button("End the quarantine", () => give({ kind: "end_quarantine" }))),
    el("p", { class: "filters" }, field("Seconds", seconds), button("Record what it judges", () => give({ kind: "record", for_s: Number(seconds.value) }))),
    programs.length > 0 && el("p", { class: "filters" }, field("Program", program), button("Learn it anew", async () => {
      if (!confirm("Forget what " + device + " learned of this program? Until it is learned again, only decisive events alarm.")) return;
      await give({ kind: "relearn", program_key: program.value });
    })));
  return el("section", { id: "orders" }, el("h2", {}, "What it was asked"), asks || null,
    orders.length ? el("ul", {}, orders.map((order) => orderItem(device, order))) : el("p", { class: "quiet" }, "Nothing."));
}

function orderItem(device, order) {
  const lines = (order.answer || "").split("\n");
  const cancel = order.state === "waiting" && order.order.kind !== "configure" && may("analyst") && button("Take back", async () => {
    await ask("/devices/" + device + "/orders/" + order.id, { method: "DELETE" });
    say("it is not asked any more");
    again();
  });
  return el("li", { "data-order": order.state },
    el("p", { class: "summary" }, what(order.order) + ": " + order.state + " ", time(order.answered_unix_ms || order.created_unix_ms)),
    el("p", { class: "quiet" }, "by " + (order.by || "nobody") + (order.state === "waiting" && order.expires_unix_ms ? ", until " : ""),
      order.state === "waiting" && order.expires_unix_ms ? time(order.expires_unix_ms) : null),
    answered(order, lines), captured(device, order), cancel || null);
}

function answered({ order, state, answer }, lines) {
  const shows = state === "done" && { processes: running, process: lately }[order.kind];
  if (shows) {
    try { return shows(JSON.parse(answer)); } catch { /* Of an agent that tells it otherwise: as it is. */ }
  }
  return lines.length > 1 ? el("details", {}, el("summary", {}, lines[0]), el("pre", { tabindex: 0 }, answer)) : el("p", {}, lines[0]);
}

const program = ({ exe, script, unit }) => exe + (script ? " " + script : "") + " (" + unit + ")";

// What runs on a device, as it answered.
function running(told) {
  const rows = told.processes.map(({ pid, comm, uid, program: of, state, judged }) =>
    [pid, comm, program(of), uid, state,
      judged ? judged.score.toFixed(0) + " " + judged.severity : el("em", {}, "not judged"), judged ? judged.summary : ""]);
  return el("details", {}, el("summary", {}, told.processes.length + " processes" + (told.left_out ? ", " + told.left_out + " more" : "")),
    table(["Process", "Name", "Program", "User", "State", "Score", "Last verdict"], rows, "None is followed."));
}

// How one process was judged: its scores over time, and what the last verdict was made of.
function lately({ pid, comm, uid, program: of, state, scores, last }) {
  const { detectors = [], evidence = [] } = last ? last.explanation : {};
  return el("details", { class: "lately", open: true }, el("summary", {}, "Process " + pid + " (" + comm + "), user " + uid + ": " + program(of) + ", " + state),
    line(scores.map(({ unix_ms, score }) => [unix_ms, score]), "Scores of process " + pid),
    last ? el("p", {}, last.summary) : el("p", { class: "quiet" }, "No window of it was judged yet."),
    evidence.length ? el("ul", {}, evidence.map((one) => el("li", {}, one.text))) : null,
    detectors.length ? table(["Detector", "z", "Weight", "Adds"], detectors.map((one) => [one.name, one.z.toFixed(1), one.weight.toFixed(2), one.share.toFixed(2)]), "") : null,
    last ? el("details", {}, el("summary", {}, "All of the last verdict"), el("pre", { tabindex: 0 }, JSON.stringify(last, null, 1))) : null);
}

// What a device recorded for an order: how far it is, or the file.
function captured(device, { id, capture }) {
  if (!capture) return null;
  const kib = (bytes) => Math.ceil(bytes / 1024) + " KiB";
  if (capture.stored < capture.size) return el("p", { class: "quiet" }, kib(capture.stored) + " of " + kib(capture.size) + " are here.");
  const path = "/devices/" + device + "/orders/" + id + "/capture";
  return may("analyst") ? el("p", { class: "filters" }, button("Take the capture (" + kib(capture.size) + ")", async () => {
    const url = URL.createObjectURL(await file(path));
    el("a", { href: url, download: device + "-" + id + ".bgc" }).click();
    URL.revokeObjectURL(url);
  }),
    button("Remove it", async () => {
      await ask(path, { method: "DELETE" });
      say("the capture is removed");
      again();
    })) : el("p", { class: "quiet" }, "A capture of " + kib(capture.size) + " is here.");
}

function what(order) {
  if (order.kind === "log_level") return "log from " + order.level + " on for " + order.for_s + " s";
  if (order.kind === "relearn") return "learn " + order.program.text + " anew";
  if (order.kind === "quarantine") return "reach its fleet only for " + order.for_s + " s";
  if (order.kind === "end_quarantine") return "reach everything again";
  if (order.kind === "configure") return order.version ? "use configuration " + order.version : "use no configuration of the fleet";
  if (order.kind === "processes") return "what runs";
  if (order.kind === "process") return "how process " + order.pid + " was judged";
  if (order.kind === "update") return "run version " + order.version + " of the agent";
  if (order.kind === "end_update") return "run its package's agent";
  if (order.kind === "record") return "record for " + order.for_s + " s";
  return "how it is";
}

export async function groupPage(group) {
  const { versions, spread } = await ask("/groups/" + group + "/configurations?limit=20");
  const newest = versions[0];
  const text = el("textarea", { rows: 12, spellcheck: "false", "aria-label": "Configuration" });
  text.value = newest?.text || "";
  const shown = el("div", { role: "status" });
  const edit = may("admin") && el("section", {}, el("h2", {}, "Change it"),
    el("p", { class: "quiet" }, "TOML as in the agent's file. What is not named here stays as the file of each device says."), text,
    el("p", { class: "filters" }, button("Preview", async () => {
      const { changes, devices } = await ask("/groups/" + group + "/configurations/preview", { sent: { text: text.value } });
      shown.replaceChildren(changeTable(changes), el("p", {}, devices + " devices would be asked to use it."));
    }), button("Give it to the group", async () => {
      const { version } = await ask("/groups/" + group + "/configurations", { sent: { text: text.value, over: newest?.version || 0 } });
      say("version " + version + " is on its way");
      again();
    })), shown);
  const refused = spread.refused ? ", " + spread.refused + " refused it: their pages say why" : "";
  return {
    title: "Group " + group,
    node: el("div", {},
      el("p", {}, el("a", { href: "#/devices?group=" + group }, spread.devices + " devices"),
        newest ? "; " + spread.applied + " use version " + newest.version + refused + "." : "; each uses its own file alone."),
      edit || null,
      el("section", {}, el("h2", {}, "Versions"), versions.length ? el("ol", { id: "versions" }, versions.map((one) =>
        el("li", {}, el("p", { class: "summary" }, "Version " + one.version + " by " + one.by + " ", time(one.created_unix_ms)), changeTable(one.changes),
          el("details", {}, el("summary", {}, "All of it"), el("pre", { tabindex: 0 }, one.text || "(empty)"))))) : el("p", { class: "quiet" }, "None yet."))),
    take() {},
  };
}

function changeTable(changes) {
  const value = (one) => one === null ? el("em", {}, "as the file says") : JSON.stringify(one);
  return table(["Key", "Before", "Then"], changes.map((one) => [one.key, value(one.before), value(one.after)]), "No key changes.");
}
