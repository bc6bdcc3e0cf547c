import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef } from "preact/hooks";
import { t } from "../i18n.ts";
import { IconButton } from "./IconButton.tsx";

type Props = { title: string; onClose: () => void; children: ComponentChildren; class?: string };

/** A modal dialog: the browser's own, which keeps the focus inside, closes on Escape, and gives the focus back. */
export function Dialog({ title, onClose, children, ...rest }: Props) {
  const ref = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const dialog = ref.current;
    dialog?.showModal();
    return () => dialog?.close();
  }, []);
  return (
    // biome-ignore lint/a11y/useKeyWithClickEvents: Escape closes it; the click is one on what lies behind it
    <dialog
      ref={ref}
      class={`dialog ${rest.class ?? ""}`}
      aria-labelledby={id}
      onCancel={onClose}
      onClick={(event) => event.target === ref.current && onClose()}
    >
      <div class="dialog-inner">
        <header>
          <h2 id={id}>{title}</h2>
          <IconButton icon="close" label={t("close")} onClick={onClose} />
        </header>
        {children}
      </div>
    </dialog>
  );
}
