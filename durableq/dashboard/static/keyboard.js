// Shortcuts. Never while somebody types, and never together with Ctrl, Alt or Meta, which belong to the browser.

import { isTyping } from "./browser.js";
import { showSelection } from "./selection.js";

const CHORD = 1200;

export function listenForKeys({ toggleTheme, togglePause, showHelp }) {
  let wentAt = -Infinity;
  const actions = {
    "/": focusSearch,
    "?": showHelp,
    t: toggleTheme,
    p: togglePause,
    j: () => moveBy(1),
    k: () => moveBy(-1),
    x: tick,
    Enter: open,
    r: () => goTo("r"),
  };
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.altKey || event.metaKey || event.isComposing) return;
    if (isTyping(event.target) || document.querySelector("dialog[open]")) return;
    if (event.timeStamp - wentAt < CHORD) {
      wentAt = -Infinity;
      const link = document.querySelector(`[data-go="${CSS.escape(event.key)}"]`);
      if (link) {
        event.preventDefault();
        link.click();
        return;
      }
    }
    if (event.key === "g") {
      wentAt = event.timeStamp;
    } else if (Object.hasOwn(actions, event.key) && actions[event.key](event) !== false) {
      event.preventDefault();
    }
  });
}

function rows() {
  return [...document.querySelectorAll("[data-row]")];
}

function current() {
  return document.activeElement?.closest("[data-row]") ?? document.querySelector("[data-row].is-current");
}

function moveBy(step) {
  const all = rows();
  if (!all.length) return false;
  const at = all.indexOf(current());
  const next = all[at < 0 ? (step > 0 ? 0 : all.length - 1) : Math.min(Math.max(at + step, 0), all.length - 1)];
  for (const row of all) row.classList.toggle("is-current", row === next);
  const link = next.querySelector("[data-open]");
  if (!link) next.tabIndex = -1;
  (link ?? next).focus({ preventScroll: true });
  next.scrollIntoView({ block: "nearest" });
}

function tick() {
  const box = current()?.querySelector('input[type="checkbox"]');
  if (!box) return false;
  box.checked = !box.checked;
  showSelection();
}

function open(event) {
  if (event.target.closest("a, button, summary, input")) return false; // it opens itself
  const link = document.querySelector("[data-row].is-current [data-open]");
  if (!link) return false;
  link.click();
}

function focusSearch() {
  const field = document.querySelector("[data-search]");
  if (!field) return false;
  field.focus();
  field.select?.();
}

// Only there: what changes something is pressed by the one who looks at it.
function goTo(key) {
  const button =
    current()?.querySelector(`[data-key="${key}"]`) ??
    [...document.querySelectorAll(`[data-key="${key}"]`)].find((one) => !one.closest("[data-row]"));
  if (!button || button.disabled) return false;
  button.focus();
}
