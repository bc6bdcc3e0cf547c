import {
  ArrowDown,
  ArrowUp,
  Check,
  ChevronLeft,
  ChevronRight,
  Clock,
  Copy,
  type IconNode,
  Menu,
  MessageSquareText,
  RefreshCw,
  Settings,
  Square,
  SquarePen,
  ThumbsDown,
  ThumbsUp,
  Trash2,
  TrendingUp,
  X,
} from "lucide";
import { createElement } from "preact";

const ICONS = {
  again: RefreshCw,
  bad: ThumbsDown,
  chat: MessageSquareText,
  check: Check,
  close: X,
  copy: Copy,
  down: ArrowDown,
  good: ThumbsUp,
  left: ChevronLeft,
  loop: TrendingUp,
  menu: Menu,
  new: SquarePen,
  right: ChevronRight,
  send: ArrowUp,
  settings: Settings,
  stop: Square,
  trash: Trash2,
  waiting: Clock,
} satisfies Record<string, IconNode>;

export type IconName = keyof typeof ICONS;

/** Decoration: what it stands beside, or its button's label, says what it means. */
export function Icon({ name, size = 18 }: { name: IconName; size?: number }) {
  return (
    <svg
      class={`icon icon-${name}`}
      width={size}
      height={size}
      viewBox="0 0 24 24"
      fill="none"
      stroke="currentColor"
      stroke-width="1.75"
      stroke-linecap="round"
      stroke-linejoin="round"
      aria-hidden="true"
      focusable="false"
    >
      {ICONS[name].map(([tag, attributes], index) => createElement(tag, { ...attributes, key: index }))}
    </svg>
  );
}
