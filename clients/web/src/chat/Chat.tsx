import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import { keyWanted, reachable, tryNow } from "../connection.ts";
import { count, t } from "../i18n.ts";
import { go } from "../router.ts";
import { settingsOpen } from "../Settings.tsx";
import { storageFull } from "../storage.ts";
import { IconButton } from "../ui/IconButton.tsx";
import { Composer } from "./Composer.tsx";
import { conversation } from "./conversations.ts";
import { streamingReply } from "./model.ts";
import { TurnView } from "./TurnView.tsx";
import { send } from "./talk.ts";
import { outbox } from "./votes.ts";

const NEAR = 80; // pixels from the end that still count as the end

/** One conversation; id null: one that has not begun. */
export function Chat({ id }: { id: string | null }) {
  const open = id ? conversation(id) : undefined;
  const scroller = useRef<HTMLElement>(null);
  const [atEnd, setAtEnd] = useState(true);
  const follow = useRef(true);
  const toEnd = () => scroller.current?.scrollTo({ top: scroller.current.scrollHeight });
  useLayoutEffect(() => {
    if (follow.current) toEnd();
  });
  useEffect(() => {
    if (id && !open) go({ page: "chat", conversation: null }); // deleted, or another browser's
  }, [id, open]);
  const say = (text: string) => {
    follow.current = true;
    const where = send(id, text);
    if (where !== id) go({ page: "chat", conversation: where });
  };
  return (
    <div class="chat">
      <section
        ref={scroller}
        class="scroller"
        aria-label={t("chat")}
        // biome-ignore lint/a11y/noNoninteractiveTabindex: what scrolls must be reachable by keyboard
        tabIndex={0}
        onScroll={({ currentTarget: { scrollHeight, scrollTop, clientHeight } }) => {
          const end = scrollHeight - scrollTop - clientHeight < NEAR;
          follow.current = end;
          setAtEnd(end);
        }}
      >
        {open && open.turns.length > 0 ? (
          <div class="turns">
            {open.turns.map((turn, index) => (
              <TurnView
                key={turn.id}
                conversation={open.id}
                turn={turn}
                last={index === open.turns.length - 1}
                streaming={streamingReply(open) !== undefined}
              />
            ))}
          </div>
        ) : (
          <Greeting onSay={say} />
        )}
      </section>
      <div class="foot">
        {!atEnd && <IconButton icon="down" class="to-end" label={t("latest")} onClick={toEnd} />}
        <Notices />
        <Composer id={open?.id ?? null} onSend={say} />
      </div>
    </div>
  );
}

function Greeting({ onSay }: { onSay: (text: string) => void }) {
  return (
    <div class="greeting">
      <h2>{t("greeting")}</h2>
      <p>{t("greetingText")}</p>
      <ul>
        {([t("try.1"), t("try.2"), t("try.3")] as const).map((text) => (
          <li key={text}>
            <button type="button" class="suggestion" onClick={() => onSay(text)}>
              {text}
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

/** What is wrong now, and what can be done about it. */
function Notices() {
  const waiting = outbox.waiting.value.length;
  return (
    <>
      {!reachable.value && (
        <div class="notice" role="alert">
          <span>
            <strong>{t("unreachable")}</strong> {t("unreachableText")}
            {waiting > 0 && ` ${t("votes")}: ${t("votesWaiting", { count: count(waiting) })}.`}
          </span>
          <button type="button" class="button small" onClick={() => void tryNow()}>
            {t("tryNow")}
          </button>
        </div>
      )}
      {keyWanted.value && (
        <div class="notice" role="alert">
          <span>{t("keyWanted")}</span>
          <button
            type="button"
            class="button small"
            onClick={() => {
              settingsOpen.value = true;
            }}
          >
            {t("enterKey")}
          </button>
        </div>
      )}
      {storageFull.value && (
        <div class="notice" role="alert">
          {t("storageFull")}
        </div>
      )}
    </>
  );
}
