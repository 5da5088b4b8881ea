/**
 * Light and dark: as the system has it, until the switch says otherwise.
 */

const THEME_KEY = "medsyn-rating/theme";
const root = document.documentElement;

export function restoreTheme() {
  try {
    const kept = localStorage.getItem(THEME_KEY);
    if (kept === "light" || kept === "dark") root.dataset.theme = kept;
  } catch {
    // nothing can be kept here: as the system has it
  }
}

export function switchTheme() {
  const isDark = (root.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  root.dataset.theme = isDark ? "light" : "dark";
  try {
    localStorage.setItem(THEME_KEY, root.dataset.theme);
  } catch {
    // it holds for this visit
  }
}
