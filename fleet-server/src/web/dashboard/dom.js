// Making elements. Text is only ever set as text.

export const at = (id) => document.getElementById(id);
export const RANK = { LOW: 0, MEDIUM: 1, HIGH: 2, CRITICAL: 3 };

// el("p", { class: "quiet", onclick: f }, "text", child, …)
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(made, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return made;
}

export function time(ms) {
  return el("time", { datetime: new Date(ms).toISOString() }, new Date(ms).toLocaleString());
}

export function ago(ms) {
  const s = Math.max(0, Math.round((Date.now() - ms) / 1000));
  if (s < 90) return s + " s ago";
  if (s < 5400) return Math.round(s / 60) + " min ago";
  if (s < 129600) return Math.round(s / 3600) + " h ago";
  return Math.round(s / 86400) + " days ago";
}

export const severity = (alert) =>
  el("span", { class: "severity", "data-severity": alert.severity }, alert.severity + (alert.score === undefined ? "" : " " + Math.round(alert.score)));

export const techniques = (ids) => ids.map((id) => el("a", {
  class: "technique", rel: "noreferrer", href: "https://attack.mitre.org/techniques/" + id.replace(".", "/") + "/",
}, id));

export function table(head, rows, empty) {
  if (!rows.length) return el("p", { class: "quiet" }, empty);
  return el("div", { class: "wide" }, el("table", {},
    el("thead", {}, el("tr", {}, head.map((text) => text ? el("th", { scope: "col" }, text) : el("td")))),
    el("tbody", {}, rows.map((cells) => el("tr", {}, cells.map((cell) => el("td", {}, ...[cell].flat())))))));
}

// Stacked bars, one per column: [{ label, parts: [{ value, class, name }] }].
export function bars(columns, title) {
  const most = Math.max(1, ...columns.map((column) => column.parts.reduce((sum, part) => sum + part.value, 0)));
  const width = 720, height = 140, step = width / columns.length;
  const drawn = columns.flatMap((column, n) => {
    let y = height;
    return column.parts.filter((part) => part.value).map((part) => {
      const size = Math.max(2, part.value / most * height);
      y -= size;
      return svg("rect", { class: part.class, x: n * step + 1, y, width: step - 2, height: size },
        svg("title", {}, column.label + ": " + part.value + " " + part.name));
    });
  });
  const labels = columns.filter((_, n) => n % 6 === 0).map((column, n) =>
    svg("text", { x: n * 6 * step + 2, y: height + 16 }, column.label));
  return svg("svg", { viewBox: `0 0 ${width} ${height + 22}`, role: "img", "aria-label": title, class: "bars" },
    svg("line", { x1: 0, x2: width, y1: height, y2: height }), drawn, labels);
}

// Scores of 0 to 100 over time, [[unix_ms, score], …], with the bounds of MEDIUM, HIGH and CRITICAL.
export function line(points, title) {
  if (!points.length) return null;
  const width = 720, height = 120, first = points[0][0], span = Math.max(1, points[points.length - 1][0] - first);
  const x = (ms) => 4 + (ms - first) / span * (width - 8), y = (score) => height - score / 100 * (height - 8) - 4;
  const bounds = [[40, "medium"], [70, "high"], [90, "critical"]].map(([score, name]) => svg("line", { class: "bound " + name, x1: 0, x2: width, y1: y(score), y2: y(score) }));
  const dots = points.map(([ms, score]) => svg("circle", { cx: x(ms), cy: y(score), r: 3 }, svg("title", {}, new Date(ms).toLocaleString() + ": " + score.toFixed(1))));
  return svg("svg", { viewBox: `0 0 ${width} ${height + 18}`, role: "img", "aria-label": title + ", the last " + points[points.length - 1][1].toFixed(0), class: "line" },
    bounds, svg("polyline", { points: points.map(([ms, score]) => x(ms) + "," + y(score)).join(" ") }), dots,
    svg("text", { x: 2, y: height + 14 }, new Date(first).toLocaleTimeString()), svg("text", { x: width - 2, y: height + 14, "text-anchor": "end" }, new Date(first + span).toLocaleTimeString()));
}

// A share of 0 to 1 as a bar.
export function share(value) {
  return svg("svg", { viewBox: "0 0 100 8", class: "share", role: "img", "aria-label": Math.round(value * 100) + " %", preserveAspectRatio: "none" },
    svg("rect", { class: "of", width: 100, height: 8 }), svg("rect", { class: "is", width: Math.max(1, Math.min(100, value * 100)), height: 8 }));
}

// Shows the page again, with what the server says now.
export function again() {
  window.dispatchEvent(new HashChangeEvent("hashchange"));
}

// Does something at most once in so many milliseconds, while this element is on the page: events come all the time,
// and a token has its rate.
export function seldom(node, ms, act) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    setTimeout(async () => {
      waits = false;
      // What fails here is done with the next event.
      if (node.isConnected) await Promise.resolve(act()).catch(() => {});
    }, ms);
  };
}

// What somebody did, said where everybody hears it.
export function say(text) {
  at("said").textContent = text;
}

// A button that tells what went wrong.
export function button(text, act, attributes = {}) {
  const made = el("button", { type: "button", ...attributes }, text);
  made.addEventListener("click", async () => {
    made.disabled = true;
    try {
      await act(made);
    } catch (error) {
      say(error.message);
    }
    made.disabled = false;
  });
  return made;
}

export function field(label, input) {
  return el("label", { class: "field" }, el("span", {}, label), input);
}

export function choice(values, chosen, attributes = {}) {
  const made = el("select", attributes, values.map(([value, text]) => el("option", { value }, text)));
  made.value = chosen || "";
  return made;
}
