import { signal } from "@preact/signals";
import { useEffect, useId, useLayoutEffect, useRef } from "preact/hooks";
import { t } from "../i18n.ts";
import { COMPOSER } from "../shortcuts.ts";
import { load, save } from "../storage.ts";
import { IconButton } from "../ui/IconButton.tsx";
import { conversation, update } from "./conversations.ts";
import { streamingReply } from "./model.ts";
import { stop } from "./talk.ts";

/** What is being written in a conversation that has not begun. */
const newDraft = signal(load("draft", ""));

function write(id: string | null, text: string): void {
  if (id) update(id, (before) => ({ ...before, draft: text }));
  else {
    newDraft.value = text;
    save("draft", text);
  }
}

/** Where a person writes. The draft is kept with its conversation, whatever happens. */
export function Composer({ id, onSend }: { id: string | null; onSend: (text: string) => void }) {
  const field = useRef<HTMLTextAreaElement>(null);
  const hint = useId();
  const open = id ? conversation(id) : undefined;
  const draft = open ? open.draft : newDraft.value;
  const streaming = open !== undefined && streamingReply(open) !== undefined;
  useLayoutEffect(() => {
    const element = field.current;
    if (!element) return;
    element.style.height = "auto";
    element.style.height = `${element.scrollHeight}px`;
  }, [draft]);
  useEffect(() => {
    // On a phone this would open the keyboard over what there is to read.
    if (matchMedia("(hover: hover)").matches) field.current?.focus();
  }, []);
  const sendDraft = () => {
    if (streaming || !draft.trim()) return;
    if (!id) write(null, "");
    onSend(draft.trim());
    field.current?.focus();
  };
  return (
    <form
      class="composer"
      onSubmit={(event) => {
        event.preventDefault();
        sendDraft();
      }}
    >
      <label class="visually-hidden" for={COMPOSER}>
        {t("message")}
      </label>
      <textarea
        id={COMPOSER}
        ref={field}
        rows={1}
        value={draft}
        placeholder={t("messagePlaceholder")}
        aria-describedby={hint}
        enterkeyhint="send"
        onInput={(event) => write(id, event.currentTarget.value)}
        onKeyDown={(event) => {
          // While an input method composes (Chinese, Japanese …), Enter is its own.
          if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
          event.preventDefault();
          sendDraft();
        }}
      />
      <span id={hint} class="visually-hidden">
        {t("hint")}
      </span>
      {streaming && id ? (
        <IconButton icon="stop" size={14} class="send" label={t("stop")} onClick={() => stop(id)} />
      ) : (
        <IconButton icon="send" size={20} class="send" label={t("send")} disabled={!draft.trim()} onClick={sendDraft} />
      )}
    </form>
  );
}
