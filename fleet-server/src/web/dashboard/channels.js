// Who is told of alerts outside the dashboard: by post, mail or syslog.

import { ask } from "/dashboard/server.js";
import { again, button, choice, el, field, say, table } from "/dashboard/dom.js";

// What a channel is made of: the forms of its address, and the formats that go there.
const KINDS = {
  webhook: { text: "Webhook", address: "https://example.org/alerts", formats: [["json", "JSON, signed"], ["slack", "Slack, Mattermost"], ["teams", "Microsoft Teams"], ["ocsf", "OCSF"]] },
  syslog: { text: "Syslog", address: "syslog+tls://log.example.org:6514", formats: [["syslog", "RFC 5424"], ["cef", "CEF"], ["ocsf", "OCSF"]] },
  mail: { text: "Mail", address: "smtps://mail.example.org", formats: [["mail", "Mail"]] },
};
const SEVERITIES = ["MEDIUM", "HIGH", "CRITICAL"].map((one) => [one, one + " and above"]);

export function channelsSection(channels, secret) {
  const made = el("div", { role: "status" });
  return el("section", { id: "channels" }, el("h2", {}, "Notification channels"), form(made, secret), made,
    table(["Name", "Where", "What", "Told", "Waiting", "Not told", ""], channels.map((one) => [
      one.name, one.url + (one.mail ? " to " + one.mail.to.join(", ") : ""),
      [one.severity + " and above", ...Object.entries(one.matcher).map(([name, value]) => name + " " + value), one.format].join(", "),
      one.delivered, one.waiting, [String(one.dropped), one.error ? el("p", { class: "quiet" }, "last failure: " + one.error) : ""],
      [button("Test", async () => {
        const { delivered, error } = await ask("/channels/" + one.id + "/test", { method: "POST" });
        say(delivered ? one.name + " took the test" : one.name + " did not take it: " + error);
      }), " ", button("Remove", async () => {
        if (!confirm("Remove " + one.name + ", with what waits for it?")) return;
        await ask("/channels/" + one.id, { method: "DELETE" });
        say(one.name + " is told no more");
        again();
      })]]), "None: alerts are seen here and over the API only."));
}

function form(made, secret) {
  const name = el("input", { id: "channel-name" }), url = el("input", { id: "channel-url", size: 36 });
  const severity = choice(SEVERITIES, "HIGH"), group = el("input", { placeholder: "all" }), rate = el("input", { type: "number", min: 1, max: 1000, value: 20 });
  const from = el("input", { type: "email" }), to = el("input", { placeholder: "a@example.org, b@example.org" });
  const user = el("input", { autocomplete: "off" }), password = el("input", { type: "password", autocomplete: "new-password" });
  const mail = el("p", { class: "filters" }, field("From", from), field("To", to), field("Log in as", user), field("Password", password));
  const format = el("span");
  const kind = choice(Object.entries(KINDS).map(([key, one]) => [key, one.text]), "webhook", { onchange: () => shown() });
  let chosen;
  const shown = () => {
    const { address, formats } = KINDS[kind.value];
    chosen = choice(formats, formats[0][0]);
    url.placeholder = address;
    format.replaceChildren(field("Form", chosen));
    mail.hidden = kind.value !== "mail";
  };
  shown();
  const add = button("Add the channel", async () => {
    const sent = { name: name.value.trim(), url: url.value.trim(), format: chosen.value, severity: severity.value, per_minute: Number(rate.value) };
    if (group.value.trim()) sent.matcher = { group: group.value.trim() };
    if (kind.value === "mail") {
      sent.mail = { from: from.value.trim(), to: to.value.split(",").map((one) => one.trim()).filter(Boolean) };
      if (user.value.trim()) Object.assign(sent.mail, { user: user.value.trim(), password: password.value });
    }
    const answer = await ask("/channels", { sent });
    // What is made is shown with the page; the secret only now.
    made.replaceChildren(el("p", {}, sent.name + " is told from now on. ", kind.value === "webhook" ? "Its posts are signed with this secret, which is not shown again:" : ""),
      ...(kind.value === "webhook" ? [secret(answer.secret)] : []), el("p", {}, button("Show it in the list", again)));
    say(sent.name + " is told from now on");
  });
  return el("div", {},
    el("p", { class: "filters" }, field("Name of the channel", name), field("Kind", kind), field("Address", url), format, field("Severity", severity),
      field("Only of group", group), field("Messages a minute", rate)), mail, el("p", {}, add));
}
