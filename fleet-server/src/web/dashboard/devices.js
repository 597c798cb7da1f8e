// Devices: how each is, what it sees, what happened to its agent.

import { ask, may } from "/dashboard/server.js";
import { again, ago, button, el, field, say, seldom, table, time } from "/dashboard/dom.js";
import { alertItem } from "/dashboard/alerts.js";
import { ordersSection } from "/dashboard/orders.js";

const AGAIN_MS = 1000;

export async function devicesPage(_, query) {
  const after = query.get("after") || "", group = query.get("group") || "", tag = query.get("tag") || "";
  const which = (group && "&group=" + group) + (tag && "&tag=" + tag);
  const { devices, next_after } = await ask("/devices?limit=200&after=" + after + which);
  const known = new Map(devices.map((device) => [device.id, device]));
  const list = el("ul", { id: "devices" });
  const show = () => list.replaceChildren(...[...known.values()].sort((a, b) => a.id < b.id ? -1 : 1).map(deviceItem));
  show();
  if (!devices.length) list.append(el("li", { class: "quiet" }, "No device is enrolled."));
  return {
    title: "Devices",
    node: el("div", {}, list, next_after && el("a", { href: "#/devices?after=" + next_after + which }, "More")),
    take(name, device) {
      if (name !== "device" || (!known.has(device.id) && known.size >= 200)) return;
      known.set(device.id, device);
      show();
    },
  };
}

function deviceItem(device) {
  const beat = device.heartbeat;
  const blind = beat ? beat.layers.filter((layer) => !layer.backend).length : 0;
  return el("li", { "data-state": device.state, "data-device": device.id },
    el("p", { class: "summary" }, el("a", { href: "#/devices/" + device.id }, device.id), ": " + device.state, quarantined(beat) ? el("strong", {}, ", quarantined") : null),
    el("p", { class: "quiet" }, "group " + device.group + (device.tags.length ? ", " + device.tags.join(", ") : "") + ", " + device.alerts + " alerts" + (blind ? ", " + blind + " layers not seen" : "")),
    beat && el("p", { class: "quiet" }, beat.arch + ", Linux " + beat.kernel + ", agent " + beat.version + ", " +
      (beat.rss_bytes / 1048576).toFixed(0) + " MiB, " + beat.outbox_waiting + " waiting"));
}

function quarantined(beat) {
  return beat?.counters.quarantine_left_s || 0;
}

export async function devicePage(id) {
  const [device, { alerts }, { events }, { orders }] = await Promise.all([ask("/devices/" + id), ask("/alerts?limit=20&device=" + id),
    ask("/events?limit=50&device=" + id), ask("/devices/" + id + "/orders?limit=20")]);
  const beat = device.heartbeat;
  const lost = beat ? Object.entries(beat.counters).filter(([name, value]) => value && /dropped|failed|refused|throttled|rejected/.test(name)) : [];
  const facts = [["State", device.state], ["Group", el("a", { href: "#/groups/" + device.group }, device.group)],
    ["Tags", device.tags.length ? device.tags.flatMap((tag) => [el("a", { href: "#/devices?tag=" + tag }, tag), " "]) : "none"], ["Enrolled", time(device.enrolled_unix_ms)],
    ["Last seen", device.last_seen_unix_ms ? ago(device.last_seen_unix_ms) : "never"],
    ["Certificate until", device.certificate_ends_unix_s ? time(device.certificate_ends_unix_s * 1000) : "unknown"]];
  if (beat) facts.push(["Machine", beat.arch + ", Linux " + beat.kernel], ["Agent", beat.version + ", up " + Math.round(beat.uptime_ms / 60000) + " min"],
    ["Memory", (beat.rss_bytes / 1048576).toFixed(1) + " MiB"], ["CPU", beat.uptime_ms ? (100 * beat.cpu_ms / beat.uptime_ms).toFixed(2) + " % of one core" : ""],
    ["Waiting to be sent", String(beat.outbox_waiting)]);
  if (quarantined(beat)) facts.unshift(["Quarantined", el("strong", {}, "reaches its fleet only, for " + Math.ceil(quarantined(beat) / 60) + " min more")]);
  const happened = el("ol", { id: "events" }, [...events].reverse().map((event) => eventItem(event, events)));
  const group = el("input", { value: device.group }), tags = el("input", { value: device.tags.join(" ") });
  const admin = may("admin") && el("section", {}, el("h2", {}, "Administration"), el("p", { class: "filters" }, field("Group", group),
    button("Move", async () => { await ask("/devices/" + id, { method: "PATCH", sent: { group: group.value.trim() } }); say("moved"); again(); }),
    field("Tags", tags), button("Tag", async () => {
      await ask("/devices/" + id, { method: "PATCH", sent: { tags: tags.value.split(/\s+/).filter((tag) => tag) } });
      say("tagged");
      again();
    }),
    button("Revoke", async () => {
      if (!confirm("Revoke " + id + "? Nothing of it is taken any more, and it must be enrolled again.")) return;
      await ask("/devices/" + id + "/revoke", { method: "POST" });
      say(id + " is revoked");
      again();
    }, { class: "bad" })));
  const node = el("div", {}, el("div", { class: "two" },
    el("section", {}, el("h2", {}, "How it is"), el("dl", {}, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, ...[value].flat())])),
      lost.length > 0 && el("details", {}, el("summary", {}, lost.length + " counters of something lost or refused"), table(["Counter", ""], lost, ""))),
    el("section", {}, el("h2", {}, "What it sees"), beat ? table(["Layer", "Hook", "Better hooks"], beat.layers.map((layer) =>
      [layer.layer, layer.backend || el("strong", {}, "not seen"), layer.failed.map((failed) => failed.backend + ": " + failed.reason).join("; ")]), "") : el("p", {}, "No heartbeat yet."))),
    el("section", {}, el("h2", {}, "Programs"), table(["Program", "State", "Generation", "Windows sent"], beat ? beat.programs.map((one) =>
      [el("a", { href: "#/alerts?device=" + id + "&program=" + one.program.key }, one.program.text), one.state, one.generation || "none", one.windows]) : [], "No program is watched.")),
    ordersSection(id, orders, beat ? beat.programs : []),
    el("section", {}, el("h2", {}, "What happened to its agent"), happened, events.length ? null : el("p", { class: "quiet" }, "Nothing.")),
    el("section", {}, el("h2", {}, "Its newest alerts"), el("ol", { id: "alerts" }, [...alerts].reverse().map((alert) => alertItem(alert))), alerts.length ? null : el("p", { class: "quiet" }, "None.")),
    admin || null);
  const soon = seldom(node, AGAIN_MS, again);
  return {
    title: id, node,
    take(name, data) {
      if ((name === "event" || name === "alert") && data.device === id) soon();
      // An answer comes as news of the device, and so do a whole capture and each heartbeat.
      const awaited = ({ state, order, capture }) => state === "waiting" || (order.kind === "record" && state === "done" && !(capture && capture.stored === capture.size));
      if (name === "device" && data.id === id && orders.some(awaited)) soon();
    },
  };
}

// What happened to an agent; a containment that stands can be undone.
export function eventItem(event, others) {
  const undone = others.some((other) => other.kind === "released" && other.device === event.device && other.containment === event.containment);
  const release = event.kind === "contained" && event.containment !== null && !undone && may("analyst")
    && button("Release", async (made) => {
      await ask("/devices/" + event.device + "/release", { sent: { containment: event.containment } });
      made.textContent = "Asked for";
    });
  return el("li", { "data-kind": event.kind },
    el("p", { class: "summary" }, el("a", { href: "#/devices/" + event.device }, event.device), ": " + event.kind.replaceAll("_", " ") + " ", time(event.unix_ms)),
    el("p", { class: "quiet" }, event.text), release || null);
}

