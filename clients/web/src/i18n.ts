// The page's words, in English and Chinese. A key that one language lacks does not compile.

import { language } from "./preferences.ts";
import { en } from "./words/en.ts";
import { zh } from "./words/zh.ts";

export type Key = keyof typeof en;

/** The words of `key` in the chosen language, with each {name} filled in. */
export function t(key: Key, values: Record<string, string | number> = {}): string {
  return fill((language.value === "zh" ? zh : en)[key], values);
}

export function fill(text: string, values: Record<string, string | number>): string {
  return text.replace(/\{(\w+)\}/g, (whole, name: string) => (name in values ? String(values[name]) : whole));
}

/** Words for what the server may name in any word of its own, e.g. an aspect; its own word if there are none. */
export function named(prefix: "aspect" | "state" | "stage" | "actor" | "check", word: string): string {
  const key = `${prefix}.${word}`;
  return key in en ? t(key as Key) : word;
}

const locale = () => (language.value === "zh" ? "zh-CN" : "en-GB");

export function number(value: number, digits = 2): string {
  return new Intl.NumberFormat(locale(), { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(
    value,
  );
}

export function count(value: number): string {
  return new Intl.NumberFormat(locale()).format(value);
}

export function percent(share: number, digits = 0): string {
  const style = { style: "percent", maximumFractionDigits: digits } as const;
  return new Intl.NumberFormat(locale(), style).format(share);
}

/** Hours and minutes today; the date, too, on another day. */
export function when(time: Date, now = new Date()): string {
  const today = time.toDateString() === now.toDateString();
  const day = today ? {} : ({ month: "short", day: "numeric" } as const);
  return new Intl.DateTimeFormat(locale(), { ...day, hour: "2-digit", minute: "2-digit", hour12: false }).format(time);
}
