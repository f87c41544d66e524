// Live updates. The server says that something has changed; the page is fetched again, and what is marked
// data-live is put in place of what is there. Nothing moves while somebody selects, types or answers a question.

import { isTyping, keep, kept, say } from "./browser.js";
import { clock } from "./times.js";

const SHORTEST = 1000;
const LONGEST = 30_000;
const PATIENCE = 6000;

export function watchQueue({ prepare, done }) {
  const button = document.querySelector("[data-live-toggle]");
  const label = document.querySelector("[data-live-label]");
  const address = document.body.dataset.liveUrl;
  if (!button || !address || !document.querySelector("[data-live]")) {
    if (button) button.hidden = true;
    return { toggle() {} };
  }
  let isPaused = kept("live") === "paused";
  let isDirty = false;
  let source = null;
  let known = null;
  let delay = SHORTEST;
  let timer = 0;
  let again = 0;
  let doubt = 0;
  let trouble = ""; // what keeps the page from being updated, in the words of the label
  let isGone = false;

  function show() {
    const isHeld = isDirty && isSomebodyBusy();
    button.setAttribute("aria-pressed", String(!isPaused));
    button.classList.toggle("is-waiting", !isPaused && isHeld);
    button.classList.toggle("is-lost", !isPaused && trouble !== "");
    label.textContent = isPaused ? "Paused" : trouble || (isHeld ? "Waits" : "Live");
  }

  function connect() {
    disconnect();
    if (isPaused || isGone || document.hidden) return;
    const url = new URL(address, location.href);
    if (known !== null) url.searchParams.set("known", known);
    source = new EventSource(url);
    source.addEventListener("open", () => {
      delay = SHORTEST;
      clearTimeout(doubt);
      doubt = 0;
      trouble = "";
      show();
    });
    source.addEventListener("changed", (event) => {
      known = JSON.parse(event.data);
      isDirty = true;
      plan(0);
    });
    source.addEventListener("error", () => {
      // A stream that ended is opened again by the browser; only when that takes long is something wrong.
      doubt ||= setTimeout(findOut, source?.readyState === EventSource.CLOSED ? 0 : PATIENCE);
      if (source?.readyState !== EventSource.CLOSED) return;
      again = setTimeout(connect, delay * (0.7 + 0.6 * Math.random()));
      delay = Math.min(delay * 2, LONGEST);
    });
  }

  // A stream that fails does not say why; the page does.
  async function findOut() {
    const error = await fetchPage().then(() => null, (error) => error);
    if (source?.readyState !== EventSource.OPEN) lose(error);
  }

  function lose(error) {
    if (error?.status === 404 && tellThatItIsGone()) {
      isGone = true;
      trouble = "Gone";
      disconnect();
    } else if ([401, 403].includes(error?.status)) {
      trouble = "Signed out";
    } else if (!trouble.startsWith("Offline")) {
      trouble = `Offline since ${clock(new Date())}`;
    }
    show();
  }

  function disconnect() {
    clearTimeout(again);
    clearTimeout(doubt);
    doubt = 0;
    source?.close();
    source = null;
  }

  function plan(wait) {
    if (!timer) timer = setTimeout(look, wait);
  }

  async function look() {
    if (isPaused || isGone || !isDirty || isSomebodyBusy()) {
      timer = 0;
      show();
      if (!isPaused && !isGone && isDirty) plan(500);
      return;
    }
    isDirty = false;
    const began = performance.now();
    try {
      await refresh(prepare, () => !isPaused && !isSomebodyBusy());
      trouble = "";
      done();
    } catch (error) {
      if (error instanceof Busy) isDirty = true;
      else lose(error);
    }
    show();
    // A page that is slow to make is asked for less often.
    setTimeout(() => {
      timer = 0;
      if (isDirty) plan(0);
    }, Math.max(SHORTEST, 4 * (performance.now() - began)));
  }

  function toggle() {
    isPaused = !isPaused;
    keep("live", isPaused ? "paused" : "on");
    say(isPaused ? "Live updates paused" : "Live updates on");
    if (isPaused) disconnect();
    else connect();
    show();
  }

  button.addEventListener("click", toggle);
  document.addEventListener("visibilitychange", connect);
  addEventListener("pagehide", disconnect);
  show();
  connect();
  return { toggle };
}

class Busy extends Error {}

class NotShown extends Error {
  constructor(response) {
    super(`the server answered ${response.status}`);
    this.status = response.redirected ? 401 : response.status; // to a page where one signs in
  }
}

function isSomebodyBusy() {
  if (isTyping() || document.querySelector("dialog[open], [data-row] input:checked")) return true;
  const selection = getSelection();
  return Boolean(selection && !selection.isCollapsed && String(selection).trim());
}

async function fetchPage() {
  const response = await fetch(location.href, { headers: { Accept: "text/html" }, cache: "no-store" });
  if (!response.ok || response.redirected) throw new NotShown(response);
  return new DOMParser().parseFromString(await response.text(), "text/html");
}

// What was read stays, and what can no longer be done is taken away.
function tellThatItIsGone() {
  const place = document.querySelector("[data-gone]");
  if (!place) return false;
  const note = document.createElement("p");
  note.className = "flash flash-warn";
  note.textContent = place.dataset.gone;
  place.before(note);
  const isFocusLost = Boolean(document.activeElement?.closest("[data-gone] .actions"));
  for (const button of place.querySelectorAll("form button")) button.disabled = true;
  for (const link of place.querySelectorAll(".page-head .actions a")) link.remove();
  if (isFocusLost) document.getElementById("main").focus();
  say(place.dataset.gone);
  return true;
}

async function refresh(prepare, isWelcome) {
  const page = await fetchPage();
  if (!isWelcome()) throw new Busy("somebody began to do something while the page was fetched");
  prepare(page);
  for (const old of document.querySelectorAll("[data-live][id]")) {
    const fresh = page.getElementById(old.id);
    if (fresh && old.isConnected) await replace(old, fresh);
  }
}

async function replace(old, fresh) {
  for (const details of old.querySelectorAll("details[id][open]")) {
    fresh.querySelector(`#${CSS.escape(details.id)}`)?.setAttribute("open", "");
  }
  const current = old.querySelector(".is-current [data-open]")?.getAttribute("href");
  if (current) {
    fresh.querySelector(`[data-open][href="${CSS.escape(current)}"]`)?.closest("[data-row]")?.classList.add("is-current");
  }
  const at = [...old.querySelectorAll("[data-row]")].findIndex((row) => row.contains(document.activeElement));
  const scrolled = [...old.querySelectorAll(".table-box, .code")].map((box) => [box.scrollLeft, box.scrollTop]);
  await htmx.swap({ text: fresh.outerHTML, target: old, swap: "outerMorph" });
  const boxes = document.getElementById(fresh.id)?.querySelectorAll(".table-box, .code") ?? [];
  boxes.forEach((box, index) => {
    if (scrolled[index]) [box.scrollLeft, box.scrollTop] = scrolled[index];
  });
  if (at >= 0 && (document.activeElement ?? document.body) === document.body) focusRow(document.getElementById(fresh.id), at);
}

// The row that had the focus is gone: whoever goes by keys goes on from the one that took its place.
function focusRow(place, at) {
  const rows = place?.querySelectorAll("[data-row]") ?? [];
  const row = rows[Math.min(at, rows.length - 1)];
  (row?.querySelector("[data-open]") ?? document.getElementById("main")).focus({ preventScroll: true });
}

// A form marked data-auto-submit is one piece of a long work: it is sent, and what comes back may be the next piece.
export async function runBulk() {
  const main = document.getElementById("main");
  let form = main.querySelector("form[data-auto-submit]");
  while (form) {
    const response = await fetch(form.action, {
      method: "POST",
      body: new URLSearchParams(new FormData(form)),
      headers: { Accept: "text/html" },
    }).catch(() => null);
    if (!response?.ok) {
      form.removeAttribute("data-auto-submit");
      for (const state of main.querySelectorAll("[data-bulk-state]")) state.textContent = "stopped";
      for (const note of main.querySelectorAll("[data-bulk-stopped]")) note.hidden = false;
      say("It stopped. Press the button to go on.");
      return;
    }
    const page = new DOMParser().parseFromString(await response.text(), "text/html");
    const next = page.getElementById("main");
    if (response.redirected || !next) {
      location.assign(response.url);
      return;
    }
    await htmx.swap({ text: next.innerHTML, target: main, swap: "innerMorph" });
    form = main.querySelector("form[data-auto-submit]");
  }
}
