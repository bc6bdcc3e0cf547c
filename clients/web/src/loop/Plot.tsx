// One chart by Chart.js, in the page's colours, with its figures as a table for those who cannot see it.

import {
  BarController,
  BarElement,
  CategoryScale,
  Chart,
  type ChartConfiguration,
  Legend,
  LinearScale,
  LineController,
  LineElement,
  PointElement,
  Tooltip,
} from "chart.js";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import { t } from "../i18n.ts";
import { theme } from "../preferences.ts";

Chart.register(
  BarController,
  BarElement,
  CategoryScale,
  Legend,
  LinearScale,
  LineController,
  LineElement,
  PointElement,
  Tooltip,
);

export type Colours = { ink: string; soft: string; line: string; accent: string; bad: string; series: string[] };

/** What a chart shows, and the same as a table. */
export type Figure = {
  config: (colours: Colours) => ChartConfiguration;
  head: string[];
  rows: string[][];
};

/** The theme's colours as the browser computes them: a canvas knows no light-dark(). */
function colours(): Colours {
  const probe = document.createElement("span");
  document.body.append(probe);
  const computed = (value: string) => {
    probe.style.color = value;
    return getComputedStyle(probe).color;
  };
  const found = {
    ink: computed("var(--ink)"),
    soft: computed("var(--ink-soft)"),
    line: computed("var(--line)"),
    accent: computed("var(--accent)"),
    bad: computed("var(--bad)"),
    series: [1, 2, 3, 4, 5].map((index) => computed(`var(--series-${index})`)),
  };
  probe.remove();
  return found;
}

/** Changes whenever the colours do. */
function useDark(): boolean {
  const [dark, setDark] = useState(() => matchMedia("(prefers-color-scheme: dark)").matches);
  useEffect(() => {
    const query = matchMedia("(prefers-color-scheme: dark)");
    const follow = () => setDark(query.matches);
    query.addEventListener("change", follow);
    return () => query.removeEventListener("change", follow);
  }, []);
  return theme.value === "auto" ? dark : theme.value === "dark";
}

export function Plot({ label, figure, height = 270 }: { label: string; figure: Figure; height?: number }) {
  const canvas = useRef<HTMLCanvasElement>(null);
  const chart = useRef<Chart | null>(null);
  const dark = useDark();
  // The loop says all of itself whenever something changes: only what is new is drawn.
  const state = JSON.stringify([figure.head, figure.rows]);
  const shown = useMemo(() => figure, [state]);
  useEffect(() => {
    if (!canvas.current) return;
    const palette = colours();
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    Chart.defaults.color = palette.soft;
    Chart.defaults.borderColor = palette.line;
    const made = shown.config(palette);
    const options = { ...made.options, responsive: true, maintainAspectRatio: false, animation: false as const };
    chart.current = new Chart(canvas.current, { ...made, options } as ChartConfiguration);
    return () => chart.current?.destroy();
  }, [shown, dark]);
  if (figure.rows.length === 0) return <p class="no-data">{t("noData")}</p>;
  return (
    <>
      <div class="plot" style={{ height: `${height}px` }}>
        <canvas ref={canvas} role="img" aria-label={label} />
      </div>
      <details class="figures">
        <summary>{t("asTable")}</summary>
        <div class="table-scroll">
          <table>
            <thead>
              <tr>
                {figure.head.map((cell) => (
                  <th key={cell} scope="col">
                    {cell}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {figure.rows.map((row) => (
                <tr key={row.join()}>
                  {row.map((cell, index) => (
                    <td key={index}>{cell}</td>
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      </details>
    </>
  );
}
