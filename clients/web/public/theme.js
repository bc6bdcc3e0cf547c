// Before anything is drawn, so that a dark page does not flash white. A file of its own: the page's
// Content-Security-Policy allows no inline script.
try {
  const theme = localStorage.getItem("plaudit.theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // storage is forbidden: the system's theme it is
}
