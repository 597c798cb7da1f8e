// Enrolment tokens, users, rules that hide alerts, channels, and who changed what.

import { ask, may, session } from "/dashboard/server.js";
import { channelsSection } from "/dashboard/channels.js";
import { again, button, choice, el, field, say, table, time } from "/dashboard/dom.js";

const ROLES = [["viewer", "viewer"], ["analyst", "analyst"], ["admin", "admin"]];

export async function settingsPage() {
  const { suppressions } = await ask("/suppressions");
  const node = el("div", {}, el("p", {}, "Signed in as " + session.me.name + " (" + session.me.role + ")."), rules(suppressions));
  if (may("admin")) {
    const [{ tokens }, { users }, { channels }, { audit }] = await Promise.all([ask("/tokens"), ask("/users"), ask("/channels"), ask("/audit?limit=50")]);
    node.append(enrolment(tokens), people(users), channelsSection(channels, secret), el("section", {}, el("h2", {}, "Audit log"),
      table(["When", "Who", "From", "What", "To what", ""], audit.map((row) => [time(row.unix_ms), row.who, row.from, row.action, row.target, row.detail]), "Nothing was changed yet.")));
  }
  return { title: "Settings", node };
}

function rules(suppressions) {
  return el("section", {}, el("h2", {}, "Rules that hide alerts"), table(["Hides", "Why", "By", "Until", "Hidden", ""], suppressions.map((rule) => [
    Object.entries(rule.matcher).map(([name, value]) => name + " " + value).join(", "), rule.why, rule.by,
    rule.expires_unix_ms ? time(rule.expires_unix_ms) : "for ever", rule.hidden,
    may("analyst") ? button("Remove", async () => { await ask("/suppressions/" + rule.id, { method: "DELETE" }); say("the rule is gone"); again(); }) : "",
  ]), "None. An alert's page makes one."));
}

// A secret is shown once, where it can be copied.
function secret(text) {
  return el("p", { class: "secret" }, el("code", {}, text), " ", button("Copy", async () => { await navigator.clipboard.writeText(text); say("copied"); }));
}

function enrolment(tokens) {
  const group = el("input", { value: "default" }), uses = el("input", { type: "number", min: 1, value: 1 }), hours = el("input", { type: "number", min: 1, max: 720, value: 24 });
  const made = el("div", { role: "status" });
  return el("section", {}, el("h2", {}, "Enrolment tokens"),
    el("p", { class: "filters" }, field("Group", group), field("Devices", uses), field("Hours", hours), button("Make one", async () => {
      const answer = await ask("/tokens", { sent: { group: group.value.trim(), uses: Number(uses.value), ttl_s: Number(hours.value) * 3600 } });
      made.replaceChildren(el("p", {}, "Give this line to ", el("code", {}, "behaveguard enroll"), "; it is not shown again:"), secret(answer.token));
    })), made,
    table(["Id", "Group", "Device", "Used", "Until", "By", ""], tokens.map((row) => [row.id, row.group, row.device || "any", row.used + " of " + row.uses,
      time(row.expires_unix_s * 1000), row.by, button("Delete", async () => { await ask("/tokens/" + row.id, { method: "DELETE" }); say("the token is worth nothing"); again(); })]), "None."));
}

function people(users) {
  const name = el("input"), role = choice(ROLES, "viewer"), made = el("div", { role: "status" });
  const token = async (user, label) => {
    const answer = await ask("/users/" + user + "/tokens", { sent: { label } });
    made.replaceChildren(el("p", {}, "The token of " + user + "; it is not shown again:"), secret(answer.token));
  };
  return el("section", {}, el("h2", {}, "Users"),
    el("p", { class: "filters" }, field("Name", name), field("Role", role), button("Add", async () => {
      await ask("/users/" + name.value.trim(), { method: "PUT", sent: { role: role.value } });
      await token(name.value.trim(), "first");
    })), made,
    table(["Name", "Role", "Tokens", ""], users.map((user) => [user.name,
      choice(ROLES, user.role, { "aria-label": "Role of " + user.name, onchange: async (event) => {
        await ask("/users/" + user.name, { method: "PUT", sent: { role: event.target.value } }).then(() => say(user.name + " is " + event.target.value), (error) => say(error.message));
      } }),
      user.tokens.map((one) => el("p", {}, one.id + " " + one.label + " ", one.used_unix_ms ? time(one.used_unix_ms) : "never used", " ",
        button("Delete", async () => { await ask("/users/" + user.name + "/tokens/" + one.id, { method: "DELETE" }); again(); }))),
      [button("New token", () => token(user.name, "dashboard")), " ", button("Remove", async () => {
        if (!confirm("Remove " + user.name + " with all tokens?")) return;
        await ask("/users/" + user.name, { method: "DELETE" });
        again();
      })]]), "Only the owner, whose token is in the state folder."));
}
