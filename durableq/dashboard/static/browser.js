// What several parts need of the browser.

// A browser may refuse to keep anything; then a choice holds for this page.
export function kept(name) {
  try {
    return localStorage.getItem(`durableq-${name}`);
  } catch {
    return null;
  }
}

export function keep(name, value) {
  try {
    localStorage.setItem(`durableq-${name}`, value);
  } catch {
    // See above.
  }
}

// To those who listen to the page.
export function say(text) {
  document.getElementById("announcement").textContent = text;
}

const PAUSE = 5000;
let saidAt = 0;
let figures = readFigures();

// The figures that matter, when they have changed; not more often than every five seconds.
export function sayFigures() {
  const now = readFigures();
  if (!now || now === figures || performance.now() - saidAt < PAUSE) return;
  figures = now;
  saidAt = performance.now();
  say(now);
}

function readFigures() {
  return [...document.querySelectorAll("[data-announce]")]
    .map((place) => `${place.dataset.announce}: ${place.textContent}`)
    .join(", ");
}

export function isTyping(element = document.activeElement) {
  if (!element) return false;
  if (element.isContentEditable) return true;
  if (element.matches("textarea, select")) return true;
  return element.matches("input") && !["checkbox", "radio", "button", "submit", "reset"].includes(element.type);
}
