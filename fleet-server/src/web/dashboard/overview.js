// The fleet at a glance.

import { ask } from "/dashboard/server.js";
import { bars, el, seldom, svg, table } from "/dashboard/dom.js";
import { alertItem } from "/dashboard/alerts.js";
import { eventItem } from "/dashboard/devices.js";

const ALERTS = 12;
const EVENTS = 8;
const AGAIN_MS = 10000;

export async function overviewPage() {
  const [overview, { alerts }, { events }] = await Promise.all(
    [ask("/overview"), ask("/alerts?limit=" + ALERTS), ask("/events?limit=" + EVENTS)]);
  const newest = new Map(alerts.map((alert) => [alert.id, alert]));
  const told = new Map(events.map((event) => [event.id, event]));
  const sums = el("div");
  const list = el("ol", { id: "alerts", "aria-live": "polite" });
  const happened = el("ol", { id: "events", "aria-live": "polite" });
  const lists = () => {
    for (const [map, most] of [[newest, ALERTS], [told, EVENTS]]) while (map.size > most) map.delete(Math.min(...map.keys()));
    list.replaceChildren(...[...newest.values()].sort((a, b) => b.id - a.id).map(alertItem));
    if (!newest.size) list.append(el("li", { class: "quiet" }, "No alerts. Everything does what it has always done."));
    happened.replaceChildren(...[...told.values()].sort((a, b) => b.id - a.id).map((event) => eventItem(event, [...told.values()])));
    if (!told.size) happened.append(el("li", { class: "quiet" }, "Nothing happened to any agent."));
  };
  sums.replaceChildren(...summed(overview));
  lists();
  const node = el("div", {}, sums, el("div", { class: "two" },
    el("section", {}, el("h2", {}, "Newest alerts"), list),
    el("section", {}, el("h2", {}, "Agents"), happened)));
  const soon = seldom(node, AGAIN_MS, async () => sums.replaceChildren(...summed(await ask("/overview"))));
  return {
    title: "Overview", node,
    take(name, data) {
      if (name === "alert") newest.set(data.id, data);
      if (name === "event") told.set(data.id, data);
      if (name === "alert" || name === "event") lists();
      soon();
    },
  };
}

function summed(overview) {
  const [medium, high, critical] = overview.new_alerts;
  const tile = (href, value, text, kind) => el("a", { class: "tile", href, "data-kind": kind }, el("strong", {}, String(value)), " ", text);
  const hour = (n) => new Date(overview.since_unix_ms + n * 3600000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const columns = overview.hours.map(([m, h, c], n) => ({ label: hour(n), parts: [
    { value: c, class: "critical", name: "CRITICAL" }, { value: h, class: "high", name: "HIGH" }, { value: m, class: "medium", name: "MEDIUM" }] }));
  const away = overview.signing_key === "away";
  return [
    ...(away ? [el("p", { class: "notice", role: "status" }, "The signing key is away. Trainings and orders wait until it is back.")] : []),
    el("div", { class: "tiles" },
      tile("#/devices", overview.devices_online + " / " + overview.devices, "devices online", overview.silent ? "bad" : "good"),
      tile("#/devices?state=silent", overview.silent, "silent", overview.silent ? "bad" : "good"),
      tile("#/alerts?state=new&severity=CRITICAL", critical, "new critical", critical ? "bad" : "good"),
      tile("#/alerts?state=new&severity=HIGH", high, "new high"),
      tile("#/alerts?state=new", medium, "new medium"),
      tile("#/incidents", overview.incidents, "open incidents")),
    el("section", {}, el("h2", {}, "Alerts of the last 24 hours" + (overview.complete ? "" : " (of the newest 50,000)")), bars(columns, "Alerts per hour by severity")),
    el("div", { class: "two" },
      el("section", {}, el("h2", {}, "Devices and programs"), heat(overview.heat)),
      el("section", {}, el("h2", {}, "Most suspicious programs"), table(["Program", "Highest score", "Alerts"],
        overview.programs.map((one) => [el("a", { href: "#/alerts?program=" + one.program_key }, one.program), Math.round(one.score), one.alerts]),
        "No program alarmed."))),
  ];
}

// Devices down, programs across; the darker the higher the score.
function heat(cells) {
  if (!cells.length) return el("p", { class: "quiet" }, "No alerts to draw.");
  const devices = [...new Set(cells.map((cell) => cell.device))];
  const programs = [...new Map(cells.map((cell) => [cell.program_key, cell.program]))];
  const size = 28, left = 130, top = 8;
  const squares = cells.map((cell) => {
    const x = left + programs.findIndex(([key]) => key === cell.program_key) * size, y = top + devices.indexOf(cell.device) * size;
    const text = cell.device + ", " + cell.program + ": " + cell.alerts + " alerts, at most " + Math.round(cell.score);
    const kind = cell.score >= 90 ? "critical" : cell.score >= 70 ? "high" : "medium";
    return svg("a", { href: "#/alerts?device=" + cell.device + "&program=" + cell.program_key, "aria-label": text },
      svg("rect", { class: kind, x: x + 1, y: y + 1, width: size - 2, height: size - 2, rx: 3 }, svg("title", {}, text)),
      svg("text", { class: "count", x: x + size / 2, y: y + size / 2 + 4, "text-anchor": "middle" }, String(cell.alerts)));
  });
  const names = devices.map((device, n) => svg("text", { x: left - 6, y: top + n * size + 18, "text-anchor": "end" }, device.slice(0, 18)));
  const width = left + programs.length * size + 8, height = top + devices.length * size + 8;
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, width, class: "heat", role: "group", "aria-label": "Alerts by device and program" }, names, squares);
}

