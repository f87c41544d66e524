// Times come in UTC. They are shown so, or in the reader's zone; the other one is in the title.

import { keep, kept, say } from "./browser.js";

const UNITS = [
  ["day", 86400],
  ["hour", 3600],
  ["minute", 60],
  ["second", 1],
];
const words = new Intl.RelativeTimeFormat("en", { numeric: "always", style: "short" });
let zone = kept("zone") === "local" ? "local" : "utc";

export function isUtc() {
  return zone === "utc";
}

export function toggleZone(then) {
  zone = zone === "utc" ? "local" : "utc";
  keep("zone", zone);
  showTimes(document);
  then();
  say(zone === "utc" ? "Times in UTC" : "Times in your own zone");
}

export function showTimes(root) {
  for (const time of root.querySelectorAll("time[data-when]")) showTime(time);
  const label = root.querySelector("[data-zone-label]");
  if (label) label.textContent = zone === "utc" ? "UTC" : offset(new Date());
}

export function watchTimes() {
  setInterval(() => {
    for (const time of document.querySelectorAll('time[data-when="ago"]')) showTime(time);
  }, 10_000);
}

export function clock(moment) {
  return (zone === "utc" ? inUtc(moment) : inLocal(moment)).slice(11, 16);
}

function showTime(time) {
  const moment = new Date(time.dateTime);
  if (Number.isNaN(moment.valueOf())) return;
  const [shown, other] = zone === "utc" ? [inUtc(moment), inLocal(moment)] : [inLocal(moment), inUtc(moment)];
  const away = ago(moment);
  const text = { ago: away, time: shown.slice(11) }[time.dataset.when] ?? shown;
  const title = time.dataset.when === "ago" ? `${shown}\n${other}` : `${other}\n${away}`;
  if (time.textContent !== text) time.textContent = text;
  if (time.title !== title) time.title = title;
}

function inUtc(moment) {
  return `${moment.toISOString().slice(0, 19).replace("T", " ")} UTC`;
}

function inLocal(moment) {
  const shifted = new Date(moment.valueOf() - moment.getTimezoneOffset() * 60_000);
  return `${shifted.toISOString().slice(0, 19).replace("T", " ")} ${offset(moment)}`;
}

function offset(moment) {
  const minutes = -moment.getTimezoneOffset();
  const [hours, rest] = [Math.floor(Math.abs(minutes) / 60), Math.abs(minutes) % 60];
  return `UTC${minutes < 0 ? "−" : "+"}${hours}${rest ? `:${String(rest).padStart(2, "0")}` : ""}`;
}

function ago(moment) {
  const seconds = Math.round((moment - Date.now()) / 1000);
  if (Math.abs(seconds) < 1) return "now";
  // Rounded, in the unit that this leads to: a minute before two days "in 2 days", and never "in 60 min."
  const reaches = ([, size], at) => Math.abs(seconds) >= size - (UNITS[at + 1]?.[1] ?? 0) / 2;
  const [unit, length] = UNITS.find(reaches) ?? UNITS.at(-1);
  return words.format(Math.sign(seconds) * Math.round(Math.abs(seconds) / length), unit);
}
