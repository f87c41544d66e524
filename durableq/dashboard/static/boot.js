// Runs before the page is painted: that JavaScript is on, and which theme was chosen here.
(() => {
  const root = document.documentElement;
  root.classList.add("js");
  let theme = null;
  try {
    theme = localStorage.getItem("durableq-theme");
  } catch {
    // A browser that keeps nothing follows the system.
  }
  if (theme === "light" || theme === "dark") root.dataset.theme = theme;
})();
