// Baselines: how far each is, and training one anew.

import { ask, may } from "/dashboard/server.js";
import { button, el, say, seldom, share, table, time } from "/dashboard/dom.js";

const AGAIN_MS = 3000;

export async function baselinesPage() {
  const place = el("div");
  const load = async () => {
    const { training } = await ask("/training");
    place.replaceChildren(table(["Device", "Program", "State", "Windows", "Generation", "Trained", ""], training.map((row) => [
      el("a", { href: "#/devices/" + row.device }, row.device), row.program.text,
      row.refused ? "refused: " + row.refused : row.failure ? "failed: " + row.failure : row.state,
      [row.windows_collected + " of " + row.windows_needed, share(row.windows_collected / row.windows_needed)],
      row.generation ? row.generation + (row.reported_generation === row.generation ? " in use" : " offered") : "none",
      row.trained_unix_s ? time(row.trained_unix_s * 1000) : "",
      may("analyst") ? button("Train", async () => {
        await ask("/training", { sent: { device: row.device, program_key: row.program.key } });
        say("training " + row.program.text + " is queued");
        await load();
      }) : "",
    ]), "No program is learned yet: windows come from devices whose programs are LEARNING."));
  };
  await load();
  const soon = seldom(place, AGAIN_MS, load);
  return {
    title: "Baselines", node: place,
    take(name) {
      if (name === "training") soon();
    },
  };
}
