// Alerts and incidents: lists, pages, and the work on them.

import { ask, may } from "/dashboard/server.js";
import { again, ago, button, choice, el, field, RANK, say, severity, share, table, techniques, time } from "/dashboard/dom.js";

const SHOWN = 100;
const STATES = [["", "any state"], ["new", "new"], ["acknowledged", "acknowledged"], ["resolved", "resolved"], ["false_positive", "false positive"]];
const SEVERITIES = [["", "any severity"], ["MEDIUM", "MEDIUM"], ["HIGH", "HIGH"], ["CRITICAL", "CRITICAL"]];
const FILTERS = ["q", "device", "group", "program", "technique", "severity", "state", "assignee", "incident", "suppressed"];

export function alertItem(alert, ...before) {
  return el("li", { "data-id": alert.id, "data-severity": alert.severity, "data-work": alert.state },
    ...(before[0] instanceof Node ? [before[0]] : []),
    el("p", {}, severity(alert), " ", time(alert.unix_ms), el("span", { class: "quiet" }, " · " + alert.device),
      alert.state === "new" ? null : el("span", { class: "work" }, alert.state.replace("_", " ") + (alert.assignee ? ", " + alert.assignee : ""))),
    el("p", { class: "summary" }, el("a", { href: "#/alerts/" + alert.id }, alert.summary)),
    el("p", { class: "quiet" }, alert.program.text + ", process " + alert.pid + " (" + alert.comm + ")"),
    el("p", {}, techniques(alert.techniques)));
}

export async function alertsPage(_, query) {
  const wanted = new URLSearchParams();
  for (const name of FILTERS) if (query.get(name)) wanted.set(name, query.get(name));
  const asked = "?" + wanted + "&limit=" + SHOWN + (query.get("before") ? "&before=" + query.get("before") : "");
  const [answer, facets] = await Promise.all([ask("/alerts" + asked), ask("/alerts/facets?" + wanted)]);
  const alerts = new Map(answer.alerts.map((alert) => [alert.id, alert]));
  const chosen = new Set();
  const list = el("ol", { id: "alerts", "aria-live": "polite" });
  const show = () => {
    while (alerts.size > SHOWN) alerts.delete(Math.min(...alerts.keys()));
    const sorted = [...alerts.values()].sort((a, b) => b.id - a.id);
    list.replaceChildren(...sorted.map((alert) => alertItem(alert, may("analyst") && pick(alert))));
    if (!sorted.length) list.append(el("li", { class: "quiet" }, "No alert fits."));
  };
  const pick = (alert) => el("input", { type: "checkbox", "aria-label": "Choose alert " + alert.id, checked: chosen.has(alert.id),
    onchange: (event) => event.target.checked ? chosen.add(alert.id) : chosen.delete(alert.id) });
  const go = (changes) => {
    const next = new URLSearchParams(wanted);
    for (const [name, value] of Object.entries(changes)) if (value) next.set(name, value); else next.delete(name);
    location.hash = "#/alerts" + (next.size ? "?" + next : "");
  };
  const words = el("input", { type: "search", id: "words", value: wanted.get("q") || "", placeholder: "shadow pump* T1059" });
  const form = el("form", { class: "filters", role: "search", onsubmit: (event) => { event.preventDefault(); go({ q: words.value.trim() }); } },
    field("Words", words), el("button", {}, "Search"),
    field("Severity, at least", choice(SEVERITIES, wanted.get("severity"), { id: "severity-filter", onchange: (event) => go({ severity: event.target.value }) })),
    field("State", choice(STATES, wanted.get("state"), { id: "state-filter", onchange: (event) => go({ state: event.target.value }) })));
  const active = FILTERS.filter((name) => wanted.get(name) && !["q", "severity", "state"].includes(name)).map((name) =>
    el("button", { type: "button", class: "chip", "aria-label": "Remove the filter " + name, onclick: () => go({ [name]: "" }) }, name + ": " + wanted.get(name) + " ×"));
  const bulk = may("analyst") && el("p", { class: "filters" }, STATES.slice(2).map(([state, text]) => button("Chosen are " + text, async () => {
    if (!chosen.size) throw new Error("choose some alerts first");
    const { changed } = await ask("/alerts", { method: "PATCH", sent: { ids: [...chosen], state } });
    chosen.clear();
    say(changed + " alerts are " + text);
    show();
  })));
  show();
  const older = answer.alerts.length === SHOWN && el("a", { href: "#/alerts?" + wanted + "&before=" + answer.next_before }, "Older ones");
  return {
    title: "Alerts",
    node: el("div", {}, form, el("p", {}, active), bulk, el("div", { class: "side" },
      el("section", {}, list, older), el("aside", { "aria-label": "What else there is" }, facetLists(facets, go)))),
    take(name, alert) {
      if (name !== "alert") return;
      // What is shown is replaced; what is new is added only where no filter that the server alone can judge is set.
      const plain = ["q", "group", "assignee"].every((one) => !wanted.get(one)) && !query.get("before");
      const fits = plain && (!wanted.get("device") || wanted.get("device") === alert.device)
        && (!wanted.get("severity") || RANK[alert.severity] >= RANK[wanted.get("severity")])
        && (!wanted.get("state") || wanted.get("state") === alert.state)
        && (!wanted.get("program") || wanted.get("program") === alert.program.key)
        && (!wanted.get("technique") || alert.techniques.includes(wanted.get("technique")))
        && (!wanted.get("incident") || Number(wanted.get("incident")) === alert.incident);
      if (fits || alerts.has(alert.id)) {
        alerts.set(alert.id, alert);
        show();
      }
    },
  };
}

function facetLists(facets, go) {
  const one = (name, title) => el("section", {}, el("h2", {}, title), el("ul", { class: "facet" }, facets[name].map((value) =>
    el("li", {}, el("button", { type: "button", onclick: () => go({ [name]: value.value }) }, (value.text || value.value).replace("_", " ")), " ", String(value.alerts)))));
  const over = facets.complete ? facets.counted + " alerts" : "Of the newest " + facets.counted.toLocaleString();
  return [el("p", { class: "quiet" }, over), one("severity", "Severity"), one("state", "State"), one("device", "Device"), one("program", "Program"), one("technique", "Technique")];
}

// What becomes of the window that an alert was about.
const WINDOW = {
  missing: "is not here: a verdict teaches nothing",
  kept: "is here: if this is a false positive, the next training takes it for normal",
  accepted: "was found to be a false alarm: the next training takes it for normal",
};

export async function alertPage(id) {
  const alert = await ask("/alerts/" + id);
  const like = await ask("/alerts?limit=10&program=" + alert.program.key);
  const change = async (sent, told) => {
    await ask("/alerts/" + id, { method: "PATCH", sent });
    say(told);
    again();
  };
  const facts = [
    ["Device", el("a", { href: "#/devices/" + alert.device }, alert.device)],
    ["Program", alert.program.text], ["Process", alert.pid + " (" + alert.comm + ")"],
    ["On the device's clock", time(alert.unix_ms)], ["Stored", time(alert.received_unix_ms)],
    ["Elsewhere", alert.rarity.text + ", " + alert.rarity.alerts + " alerts in all"],
    ["Incident", alert.incident ? el("a", { href: "#/incidents/" + alert.incident }, String(alert.incident)) : "hidden by rule " + alert.suppressed],
    ["Judged by", alert.generation ? "baseline of generation " + alert.generation : "no baseline of its own"],
    ["Its window", WINDOW[alert.window]],
    ["Not fully seen", alert.degraded.join(", ") || "nothing: every layer was seen"],
  ];
  if (alert.suppressed_before) facts.push(["Before it", alert.suppressed_before + " like it were held back"]);
  const most = Math.max(1, ...alert.detectors.map((detector) => Math.abs(detector.z)));
  const comment = el("textarea", { rows: 3, id: "comment" });
  const who = el("input", { id: "assignee", value: alert.assignee || "" });
  const work = may("analyst") && el("section", {}, el("h2", {}, "Work"),
    el("p", { class: "filters" }, STATES.slice(1).map(([state, text]) =>
      button(text, () => change({ state }, "the alert is " + text), { "aria-pressed": String(alert.state === state) }))),
    el("p", { class: "filters" }, field("Assignee", who), button("Assign", () => change({ assignee: who.value.trim() || null }, "assigned"))),
    field("Comment", comment), el("p", {}, button("Say it", () => change({ comment: comment.value }, "said"))),
    suppress(alert));
  return {
    title: alert.severity + " " + Math.round(alert.score) + ": " + alert.program.exe.split("/").pop(),
    node: el("div", {}, el("p", { class: "summary" }, severity(alert), " ", alert.summary), el("p", {}, techniques(alert.techniques)),
      el("div", { class: "two" },
        el("section", {}, el("h2", {}, "Why"), el("ol", { id: "reasons", class: "evidence" }, alert.reasons.map((reason) =>
          el("li", {}, el("p", {}, reason.layer + ": " + reason.text), share(reason.share)))),
        el("h2", {}, "Detectors (robust z)"), table(["Detector", "z", ""], alert.detectors.map((detector) =>
          [detector.name, detector.z.toFixed(1), share(Math.abs(detector.z) / most)]), "Only first-time acts were judged.")),
        el("section", {}, el("h2", {}, "Facts"), el("dl", {}, facts.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)])))),
      work || null,
      el("section", {}, el("h2", {}, "What was said"), el("ol", { id: "comments" }, alert.comments.map((one) =>
        el("li", {}, el("p", { class: "quiet" }, one.who + ", ", time(one.unix_ms)), el("p", {}, one.text)))),
        alert.comments.length ? null : el("p", { class: "quiet" }, "Nothing yet.")),
      el("section", {}, el("h2", {}, "Alerts of this program"), el("ol", {}, like.alerts.reverse().map((one) => alertItem(one))))),
    take(name, data) {
      if (name === "alert" && data.id === alert.id && data.state !== alert.state) again();
    },
  };
}

// A rule like this alert, with what it would have hidden.
function suppress(alert) {
  const reason = alert.reasons[0]?.name;
  const matcher = { exe: alert.program.exe, ...(reason && { reason }) };
  const why = el("input", { id: "why" });
  const days = el("input", { id: "days", type: "number", min: 1, max: 3650, value: 90 });
  const scope = choice([["", "on every device"], [alert.device, "on " + alert.device]], "", { id: "scope" });
  const told = el("p", { class: "quiet", role: "status" });
  const rule = () => scope.value ? { ...matcher, device: scope.value } : matcher;
  const look = async () => { told.textContent = (await ask("/suppressions/preview", { sent: rule() })).text; };
  return el("details", { id: "suppress", ontoggle: () => look().catch((error) => say(error.message)) },
    el("summary", {}, "Hide alerts like this"),
    el("p", {}, "Of " + alert.program.exe + (reason ? " with " + reason : "") + ":"),
    el("p", { class: "filters" }, field("Where", scope), field("Days", days), field("Why", why),
      button("Look again", look),
      button("Hide them", async () => {
        await ask("/suppressions", { sent: { matcher: rule(), why: why.value, ttl_s: Number(days.value) * 86400 } });
        say("alerts like this are hidden from now on");
        again();
      })), told);
}

export async function incidentsPage(_, query) {
  const state = query.get("state") || "";
  const { incidents, next_before } = await ask("/incidents?limit=50" + (state ? "&state=" + state : "") + (query.get("before") ? "&before=" + query.get("before") : ""));
  const rows = incidents.map((one) => [severity(one), el("a", { href: "#/incidents/" + one.id }, one.title),
    one.devices === 1 ? one.device : one.devices + " devices", one.alerts, ago(one.last_unix_ms), one.state.replace("_", " "), one.assignee || ""]);
  return {
    title: "Incidents",
    node: el("div", {}, el("p", { class: "filters" }, field("State", choice(STATES, state, { onchange: (event) => { location.hash = "#/incidents" + (event.target.value ? "?state=" + event.target.value : ""); } }))),
      table(["Severity", "What", "Where", "Alerts", "Last", "State", "Assignee"], rows, "No incident fits."),
      incidents.length === 50 && el("a", { href: "#/incidents?before=" + next_before + (state && "&state=" + state) }, "Older ones")),
  };
}

export async function incidentPage(id) {
  const [{ incident, devices }, { alerts }] = await Promise.all([ask("/incidents/" + id), ask("/alerts?limit=100&incident=" + id)]);
  const comment = el("textarea", { rows: 2 });
  const work = async (sent, told) => {
    await ask("/incidents/" + id, { method: "PATCH", sent });
    say(told);
    again();
  };
  return {
    title: "Incident " + id,
    node: el("div", {}, el("p", { class: "summary" }, severity(incident), " ", incident.title),
      el("p", {}, incident.alerts + " alerts from ", time(incident.first_unix_ms), " to ", time(incident.last_unix_ms), "; " + incident.state.replace("_", " ")),
      el("p", {}, "On ", devices.flatMap((device) => [el("a", { href: "#/devices/" + device }, device), " "])),
      may("analyst") && el("section", {}, el("h2", {}, "Work on all of them"), field("Comment", comment),
        el("p", { class: "filters" }, STATES.slice(1).map(([state, text]) =>
          button(text, () => work({ state, ...(comment.value.trim() && { comment: comment.value }) }, "the incident is " + text), { "aria-pressed": String(incident.state === state) })))),
      el("section", {}, el("h2", {}, "Timeline"), el("ol", { id: "alerts" }, alerts.map((alert) => alertItem(alert))))),
  };
}
