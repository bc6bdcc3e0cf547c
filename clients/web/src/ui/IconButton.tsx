import type { ComponentChildren } from "preact";
import { Icon, type IconName } from "./Icon.tsx";

type Props = {
  icon: IconName;
  label: string;
  onClick: () => void;
  class?: string;
  disabled?: boolean;
  pressed?: boolean;
  expanded?: boolean;
  size?: number;
  children?: ComponentChildren;
};

/** A button that shows an icon, and says what it does on hover and to a screen reader. */
export function IconButton({ icon, label, onClick, disabled, pressed, expanded, size, children, ...rest }: Props) {
  return (
    <button
      type="button"
      class={`icon-button ${rest.class ?? ""}`}
      title={label}
      aria-label={label}
      aria-pressed={pressed}
      aria-expanded={expanded}
      disabled={disabled}
      onClick={onClick}
    >
      <Icon name={icon} {...(size ? { size } : {})} />
      {children}
    </button>
  );
}
