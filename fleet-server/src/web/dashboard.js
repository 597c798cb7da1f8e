// The dashboard: lists once, then follows the live stream. Text is only ever set as text.
"use strict";

const RANK = { LOW: 0, MEDIUM: 1, HIGH: 2, CRITICAL: 3 };
const SHOWN_MAX = 500;
const EVENTS_SHOWN_MAX = 100;
const state = {
  token: sessionStorage.getItem("token") || "", alerts: new Map(), devices: new Map(), events: new Map(), stop: null,
};
const at = (id) => document.getElementById(id);

function element(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

async function ask(path, signal, sent) {
  const headers = { Authorization: "Bearer " + state.token };
  if (sent) headers["Content-Type"] = "application/json";
  const how = sent ? { method: "POST", body: JSON.stringify(sent) } : {};
  const answer = await fetch("/api/v1" + path, { headers, signal, ...how });
  if (answer.status === 401) throw Object.assign(new Error("this token is not accepted"), { refused: true });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Error(problem.detail || "the server answered " + answer.status);
  }
  return answer;
}

async function load(signal) {
  const [alerts, devices, events] = await Promise.all(
    ["/alerts?limit=" + SHOWN_MAX, "/devices?limit=1000", "/events?limit=" + EVENTS_SHOWN_MAX].map(async (path) => (await ask(path, signal)).json()));
  alerts.alerts.forEach((alert) => state.alerts.set(alert.id, alert));
  devices.devices.forEach((device) => state.devices.set(device.id, device));
  events.events.forEach((event) => state.events.set(event.id, event));
  showAlerts();
  showDevices();
  showEvents();
  await loadTraining(signal);
}

// Windows come all the time, and a token has its rate.
let trainingWaits = false;
function trainingSoon(signal) {
  if (trainingWaits) return;
  trainingWaits = true;
  setTimeout(async () => {
    trainingWaits = false;
    // What fails here comes with the next window, or with the next connection.
    await loadTraining(signal).catch(() => {});
  }, 2000);
}

async function loadTraining(signal) {
  const { training } = await (await ask("/training", signal)).json();
  at("training").replaceChildren(...training.map((row) => {
    const line = element("tr");
    const windows = row.windows_collected + " of " + row.windows_needed;
    const shown = row.refused ? "refused: " + row.refused : row.failure ? "failed: " + row.failure : row.state;
    for (const text of [row.device, row.program.text, shown, windows, row.generation || "none"]) {
      line.append(element("td", "", String(text)));
    }
    return line;
  }));
}

function showAlerts() {
  const device = at("device-filter").value;
  const least = RANK[at("severity-filter").value];
  while (state.alerts.size > SHOWN_MAX) state.alerts.delete(Math.min(...state.alerts.keys()));
  const shown = [...state.alerts.values()]
    .filter((alert) => (!device || alert.device === device) && RANK[alert.severity] >= least)
    .sort((a, b) => b.id - a.id);
  at("alerts").replaceChildren(...shown.map(alertItem));
  at("alerts-count").textContent = shown.length ? "(" + shown.length + ")" : "";
  at("no-alerts").hidden = shown.length > 0;
}

function alertItem(alert) {
  const item = element("li");
  item.dataset.severity = alert.severity;
  item.dataset.id = alert.id;
  const head = element("p");
  head.append(element("span", "severity", alert.severity + " " + Math.round(alert.score)), " ");
  const time = element("time", "quiet", new Date(alert.unix_ms).toLocaleString());
  time.dateTime = new Date(alert.unix_ms).toISOString();
  head.append(time, element("span", "quiet", " · " + alert.device));
  const where = element("p", "quiet", alert.program.text + ", process " + alert.pid + " (" + alert.comm + ")");
  const techniques = element("p");
  for (const id of alert.techniques) techniques.append(element("span", "technique", id));
  const details = element("details");
  details.append(element("summary", "", "Why"));
  const reasons = element("ul");
  for (const reason of alert.reasons) {
    reasons.append(element("li", "", reason.layer + ": " + reason.text));
  }
  const scores = alert.detectors.map((d) => d.name + " " + d.z.toFixed(1)).join(", ");
  reasons.append(element("li", "quiet", "detectors (robust z): " + scores + "; baseline generation " + alert.generation));
  if (alert.degraded.length) reasons.append(element("li", "quiet", "not fully seen: " + alert.degraded.join(", ")));
  if (alert.suppressed_before) reasons.append(element("li", "quiet", alert.suppressed_before + " like it were held back before"));
  details.append(reasons);
  item.append(head, element("p", "summary", alert.summary), where, techniques, details);
  return item;
}

function showDevices() {
  const devices = [...state.devices.values()].sort((a, b) => a.id.localeCompare(b.id));
  at("devices-count").textContent = devices.length ? "(" + devices.length + ")" : "";
  at("devices").replaceChildren(...devices.map(deviceItem));
  const filter = at("device-filter");
  const known = new Set([...filter.options].map((option) => option.value));
  for (const device of devices) if (!known.has(device.id)) filter.append(new Option(device.id, device.id));
}

function deviceItem(device) {
  const item = element("li");
  item.dataset.state = device.state;
  item.dataset.device = device.id;
  item.append(element("p", "summary", device.id + ": " + device.state));
  const beat = device.heartbeat;
  if (beat) {
    item.append(element("p", "quiet", beat.arch + ", Linux " + beat.kernel + ", agent " + beat.version));
    const share = beat.uptime_ms ? (100 * beat.cpu_ms / beat.uptime_ms).toFixed(1) + " % CPU, " : "";
    item.append(element("p", "quiet", share + (beat.rss_bytes / 1048576).toFixed(0) + " MiB, " +
      beat.outbox_waiting + " waiting in the outbox"));
    const details = element("details");
    details.append(element("summary", "", beat.layers.length + " layers"));
    const layers = element("ul");
    for (const layer of beat.layers) {
      layers.append(element("li", "", layer.layer + ": " + (layer.backend || "not seen")));
      for (const failed of layer.failed) layers.append(element("li", "quiet", failed.backend + ": " + failed.reason));
    }
    details.append(layers);
    item.append(details);
  }
  item.append(element("p", "quiet", device.alerts + " alerts"));
  return item;
}

function showEvents() {
  while (state.events.size > EVENTS_SHOWN_MAX) state.events.delete(Math.min(...state.events.keys()));
  const events = [...state.events.values()].sort((a, b) => b.id - a.id);
  const undone = new Set(events.filter((event) => event.kind === "released").map(containmentOf));
  at("no-events").hidden = events.length > 0;
  at("events").replaceChildren(...events.map((event) => eventItem(event, undone)));
}

function containmentOf(event) {
  return event.device + " " + event.containment;
}

function eventItem(event, undone) {
  const item = element("li");
  item.dataset.kind = event.kind;
  const head = element("p", "summary", event.device + ": " + event.kind.replaceAll("_", " ") + " ");
  const time = element("time", "quiet", new Date(event.unix_ms).toLocaleString());
  time.dateTime = new Date(event.unix_ms).toISOString();
  head.append(time);
  item.append(head, element("p", "quiet", event.text));
  if (event.kind === "contained" && event.containment !== null && !undone.has(containmentOf(event))) {
    const release = element("button", "", "Release");
    release.type = "button";
    release.addEventListener("click", async () => {
      release.disabled = true;
      release.textContent = "Asked for";
      try {
        await ask("/devices/" + event.device + "/release", undefined, { containment: event.containment });
      } catch (error) {
        release.disabled = false;
        release.textContent = "Release (" + error.message + ")";
      }
    });
    item.append(release);
  }
  return item;
}

// EventSource cannot send the token, so the stream is read by hand. It is opened before the lists are asked for, so
// that nothing falls between the two.
async function follow(signal, loaded) {
  const answer = await ask("/stream", signal);
  await load(signal);
  loaded();
  status("live", "live");
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) await take(part, signal);
  }
}

async function take(text, signal) {
  let name = "", data = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("event: ")) name = line.slice(7);
    if (line.startsWith("data: ")) data = line.slice(6);
  }
  if (name === "alert") {
    const alert = JSON.parse(data);
    state.alerts.set(alert.id, alert);
    showAlerts();
  } else if (name === "device") {
    const device = JSON.parse(data);
    state.devices.set(device.id, device);
    showDevices();
  } else if (name === "event") {
    const event = JSON.parse(data);
    state.events.set(event.id, event);
    showEvents();
  } else if (name === "training") {
    trainingSoon(signal);
  } else if (name === "lagged") {
    await load(signal);
  }
}

function status(kind, text) {
  at("link").dataset.state = kind;
  at("link").textContent = text;
}

async function start() {
  if (state.stop) state.stop.abort();
  const stop = state.stop = new AbortController();
  let wait = 1000;
  while (!stop.signal.aborted) {
    try {
      await follow(stop.signal, () => {
        sessionStorage.setItem("token", state.token);
        at("sign-in").hidden = true;
        at("main").hidden = at("sign-out").hidden = false;
        wait = 1000;
      });
      status("lost", "connection lost, trying again");
    } catch (error) {
      if (stop.signal.aborted) return;
      if (error.refused) {
        signOut();
        at("refused").textContent = error.message;
        return;
      }
      status("lost", "no connection (" + error.message + "), trying again");
    }
    await new Promise((done) => setTimeout(done, wait));
    wait = Math.min(wait * 2, 30000);
  }
}

function signOut() {
  if (state.stop) state.stop.abort();
  sessionStorage.removeItem("token");
  state.alerts.clear();
  state.devices.clear();
  state.events.clear();
  at("sign-in").hidden = false;
  at("main").hidden = at("sign-out").hidden = true;
  status("off", "signed out");
}

at("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  at("refused").textContent = "";
  state.token = at("token").value.trim();
  at("token").value = "";
  start();
});
at("sign-out").addEventListener("click", signOut);
at("device-filter").addEventListener("change", showAlerts);
at("severity-filter").addEventListener("change", showAlerts);
// The part behind # never reaches a server; a link with it signs in.
if (location.hash.startsWith("#token=")) {
  state.token = location.hash.slice(7);
  history.replaceState(null, "", "/");
}
if (state.token) start();
