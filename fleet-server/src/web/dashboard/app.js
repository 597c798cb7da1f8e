// Signs in, follows the live stream, and shows the page that the address names.

import { ask, follow, Refused, session } from "/dashboard/server.js";
import { at, el, say } from "/dashboard/dom.js";
import { alertPage, alertsPage, incidentPage, incidentsPage } from "/dashboard/alerts.js";
import { baselinesPage } from "/dashboard/baselines.js";
import { devicePage, devicesPage } from "/dashboard/devices.js";
import { groupPage } from "/dashboard/orders.js";
import { overviewPage } from "/dashboard/overview.js";
import { rolloutPage, rolloutsPage } from "/dashboard/rollouts.js";
import { settingsPage } from "/dashboard/settings.js";
import { updatePage, updatesPage } from "/dashboard/updates.js";

// Each makes a page of the rest of the address and its query: { title, node, take(event, data) }.
const PAGES = [
  [/^\/$/, overviewPage],
  [/^\/alerts$/, alertsPage],
  [/^\/alerts\/(\d+)$/, alertPage],
  [/^\/incidents$/, incidentsPage],
  [/^\/incidents\/(\d+)$/, incidentPage],
  [/^\/devices$/, devicesPage],
  [/^\/devices\/([a-z0-9-]+)$/, devicePage],
  [/^\/groups\/([a-z0-9-]+)$/, groupPage],
  [/^\/baselines$/, baselinesPage],
  [/^\/rollouts$/, rolloutsPage],
  [/^\/rollouts\/(\d+)$/, rolloutPage],
  [/^\/updates$/, updatesPage],
  [/^\/updates\/(\d+)$/, updatePage],
  [/^\/settings$/, settingsPage],
];

let stop = null;
let shown = { take() {} };
let turn = 0;

async function show() {
  const mine = ++turn;
  const [path, query] = (location.hash.slice(1) || "/").split("?");
  const found = PAGES.map(([pattern, make]) => [pattern.exec(path), make]).find(([match]) => match);
  for (const link of at("nav").children) {
    const here = link.hash === "#/" ? path === "/" : path.startsWith(link.hash.slice(1));
    if (here) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  let page;
  try {
    page = found
      ? await found[1](found[0][1], new URLSearchParams(query || ""))
      : { title: "Not found", node: el("p", {}, "There is no such page."), take() {} };
  } catch (error) {
    if (error instanceof Refused) throw error;
    page = { title: "Not shown", node: el("p", { role: "alert" }, error.message), take() {} };
  }
  // Another page was asked for meanwhile.
  if (mine !== turn) return;
  shown = page;
  document.title = page.title + " · BehaveGuard";
  at("page").replaceChildren(el("h1", {}, page.title), page.node);
}

// Events that come while a page is being made are for that page; it asks for what it shows afterwards anyway.
function take(name, data) {
  if (name === "lagged") return void show().catch(failed);
  try {
    shown.take?.(name, data);
  } catch (error) {
    say(error.message);
  }
}

function failed(error) {
  if (!(error instanceof Refused)) return say(error.message);
  signOut();
  at("refused").textContent = error.message;
}

function status(kind, text) {
  at("link").dataset.state = kind;
  at("link").textContent = text;
}

async function start() {
  if (stop) stop.abort();
  const mine = stop = new AbortController();
  let wait = 1000;
  while (!mine.signal.aborted) {
    try {
      await follow(mine.signal, async () => {
        session.me = await ask("/me", { signal: mine.signal });
        sessionStorage.setItem("token", session.token);
        at("sign-in").hidden = true;
        at("page").hidden = at("nav").hidden = at("sign-out").hidden = false;
        await show();
        status("live", "live");
        wait = 1000;
      }, take);
      status("lost", "connection lost, trying again");
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error instanceof Refused) return failed(error);
      status("lost", "no connection (" + error.message + "), trying again");
    }
    await new Promise((done) => setTimeout(done, wait));
    wait = Math.min(wait * 2, 30000);
  }
}

function signOut() {
  if (stop) stop.abort();
  sessionStorage.removeItem("token");
  session.me = null;
  shown = { take() {} };
  at("page").replaceChildren();
  at("sign-in").hidden = false;
  at("page").hidden = at("nav").hidden = at("sign-out").hidden = true;
  status("off", "signed out");
}

at("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  at("refused").textContent = "";
  session.token = at("token").value.trim();
  at("token").value = "";
  start();
});
at("sign-out").addEventListener("click", () => {
  // What somebody made stays; a session of the identity provider ends.
  ask("/session", { method: "DELETE" }).catch(() => {});
  signOut();
});
window.addEventListener("hashchange", () => {
  if (session.me && location.hash.startsWith("#/")) show().then(() => {
    at("main").focus({ preventScroll: true });
    scrollTo(0, 0);
  }).catch(failed);
});
// The part behind # never reaches a server; a link with it signs in.
if (location.hash.startsWith("#token=")) {
  session.token = location.hash.slice(7);
  history.replaceState(null, "", "/");
}
if (location.hash.startsWith("#refused=")) {
  at("refused").textContent = new URLSearchParams(location.hash.slice(1)).get("refused");
  history.replaceState(null, "", "/");
}
fetch("/api/v1/sign-in").then((answer) => answer.json()).then(({ issuer }) => {
  if (!issuer) return;
  at("provider").textContent = new URL(issuer).host;
  at("elsewhere").hidden = false;
}).catch(() => {});
if (session.token) start();
