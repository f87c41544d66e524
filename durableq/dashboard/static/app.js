// The pages work without this. It adds what only a browser can: live updates, shortcuts, charts, local times.

import { drawCharts, redrawCharts } from "./charts.js";
import { listenForKeys } from "./keyboard.js";
import { runBulk, watchQueue } from "./live.js";
import { watchSelection } from "./selection.js";
import { showTimes, toggleZone, watchTimes } from "./times.js";
import { keep, say, sayFigures } from "./browser.js";

const ask = document.getElementById("confirm");
const help = document.getElementById("help");

function toggleTheme() {
  const root = document.documentElement;
  const isDark = root.dataset.theme
    ? root.dataset.theme === "dark"
    : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = isDark ? "light" : "dark";
  keep("theme", root.dataset.theme);
  say(`${root.dataset.theme} theme`);
  redrawCharts();
}

// Plain HTTP has no clipboard of its own, and elsewhere it may be refused: then the older way is gone.
async function copyText(text) {
  const isCopied = await navigator.clipboard?.writeText(text).then(
    () => true,
    () => false,
  );
  if (isCopied) return;
  const area = document.createElement("textarea");
  area.value = text;
  area.className = "visually-hidden";
  document.body.append(area);
  area.select();
  const isDone = document.execCommand("copy");
  area.remove();
  if (!isDone) throw new Error("this browser does not let pages copy");
}

async function copyFrom(button) {
  const text = button.dataset.copy ?? button.closest(".code").querySelector("code").textContent;
  try {
    await copyText(text);
    button.classList.add("is-done");
    say("Copied");
    setTimeout(() => button.classList.remove("is-done"), 1200);
  } catch (error) {
    say(`Not copied: ${error.message}`);
  }
  button.focus();
}

function confirmFirst(event) {
  const form = event.target;
  if (!form.dataset.confirm || form.dataset.isConfirmed) return;
  event.preventDefault();
  document.getElementById("confirm-title").textContent = `${form.dataset.confirmLabel || "Go on"}?`;
  document.getElementById("confirm-text").textContent = form.dataset.confirm;
  document.getElementById("confirm-yes").textContent = form.dataset.confirmLabel || "Go on";
  ask.returnValue = "no";
  ask.showModal();
  ask.addEventListener(
    "close",
    () => {
      if (ask.returnValue !== "yes") return;
      form.dataset.isConfirmed = "yes";
      form.requestSubmit(event.submitter?.form === form ? event.submitter : undefined);
    },
    { once: true },
  );
}

// A page that answers a form has no address of its own: a reload, or the way back to it, would send the form again.
function takeAddress() {
  const { address } = document.body.dataset;
  if (address) history.replaceState(history.state, "", address);
}

// A reload must not say again what was done once.
function forgetMessage() {
  const address = new URL(location.href);
  if (!address.searchParams.has("said")) return;
  for (const name of ["said", "n", "of"]) address.searchParams.delete(name);
  history.replaceState(history.state, "", address);
}

function onClick(event) {
  const button = event.target.closest?.("button");
  if (!button) return;
  if ("copy" in button.dataset || "copyCode" in button.dataset) copyFrom(button);
  if ("themeToggle" in button.dataset) toggleTheme();
  if ("zoneToggle" in button.dataset) toggleZone(redrawCharts);
  if ("help" in button.dataset) help.showModal();
}

// A menu closes when one clicks elsewhere or presses Escape, as menus do.
function closeMenus(event) {
  for (const menu of document.querySelectorAll("details.menu[open]")) {
    if (event.type === "click" && menu.contains(event.target)) continue;
    if (menu.contains(document.activeElement)) menu.querySelector("summary").focus();
    menu.open = false;
  }
}

document.addEventListener("click", onClick);
document.addEventListener("click", closeMenus);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") closeMenus(event);
});
document.addEventListener("submit", confirmFirst);
// A page that the browser kept comes back as it was left: its forms may be sent again.
addEventListener("pageshow", () => {
  for (const form of document.querySelectorAll("[data-is-confirmed]")) delete form.dataset.isConfirmed;
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redrawCharts);

document.querySelector(".nav [aria-current]")?.scrollIntoView({ block: "nearest", inline: "nearest" });
takeAddress();
forgetMessage();
showTimes(document);
watchTimes();
drawCharts();
watchSelection();
const live = watchQueue({
  prepare: showTimes,
  done() {
    drawCharts();
    watchSelection();
    sayFigures();
  },
});
runBulk();
listenForKeys({ toggleTheme, togglePause: live.toggle, showHelp: () => help.showModal() });
