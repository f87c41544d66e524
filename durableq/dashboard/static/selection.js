// Ticked rows: one box for all, how many there are, and buttons that need one.

const heard = new WeakSet();

export function watchSelection() {
  for (const all of document.querySelectorAll("[data-select-all]")) {
    if (heard.has(all)) continue;
    heard.add(all);
    all.addEventListener("change", () => {
      for (const box of boxesOf(all)) box.checked = all.checked;
      showSelection();
    });
  }
  showSelection();
}

export function showSelection() {
  for (const all of document.querySelectorAll("[data-select-all]")) {
    const boxes = boxesOf(all);
    const ticked = boxes.filter((box) => box.checked).length;
    all.checked = ticked > 0 && ticked === boxes.length;
    all.indeterminate = ticked > 0 && ticked < boxes.length;
    for (const place of document.querySelectorAll("[data-selected-count]")) place.textContent = String(ticked);
    for (const button of document.querySelectorAll("[data-needs-selection]")) button.disabled = ticked === 0;
  }
}

function boxesOf(all) {
  const scope = all.closest("table") ?? document;
  return [...scope.querySelectorAll(`input[type="checkbox"][name="${CSS.escape(all.dataset.selectAll)}"]`)];
}

let before = null;

// With the shift key all from the box before to this one are ticked alike.
document.addEventListener("click", (event) => {
  const box = event.target.closest?.('[data-row] input[type="checkbox"]');
  if (!box) return;
  const boxes = [...document.querySelectorAll('[data-row] input[type="checkbox"]')];
  const [from, to] = [boxes.indexOf(before), boxes.indexOf(box)].sort((one, other) => one - other);
  if (event.shiftKey && from >= 0) for (const between of boxes.slice(from, to)) between.checked = box.checked;
  before = box;
  showSelection();
});
