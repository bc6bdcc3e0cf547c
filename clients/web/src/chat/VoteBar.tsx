import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { aspects } from "../deployment.ts";
import { named, t } from "../i18n.ts";
import { announce } from "../ui/announce.tsx";
import { Icon } from "../ui/Icon.tsx";
import { IconButton } from "../ui/IconButton.tsx";
import type { Reply } from "./model.ts";
import { aspectPressed, opinion, pressed, type Thumb, withOpinion } from "./opinions.ts";
import { outbox, think } from "./votes.ts";

type Props = { conversation: string; reply: Reply; preferred: boolean; children: ComponentChildren };

/** What can be done with a reply: copy it, vote on it, say more about the vote. */
export function VoteBar({ conversation, reply, preferred, children }: Props) {
  const [more, setMore] = useState(false);
  const bar = useRef<HTMLDivElement>(null);
  const { thumb } = opinion(reply.opinions);
  const waiting = outbox.waiting.value.some((entry) => entry.reply === reply.id);
  const press = (which: Thumb) => {
    think(conversation, reply.id, (before) => pressed(before, which));
    setMore(thumb !== which);
    announce(thumb === which ? t("votedBack") : t("voted"));
  };
  const close = () => {
    setMore(false);
    bar.current?.querySelector<HTMLElement>("[aria-pressed=true]")?.focus(); // what had the focus is gone
  };
  return (
    <>
      <div class="bar" ref={bar}>
        {reply.text && navigator.clipboard && <CopyButton text={reply.text} />}
        {reply.receipt && (reply.text || reply.state === "done") && (
          <fieldset class="thumbs" aria-label={t("voteOn")}>
            <IconButton
              icon="good"
              class="thumb"
              label={thumb === "up" ? t("goodTakeBack") : t("good")}
              pressed={thumb === "up"}
              onClick={() => press("up")}
            />
            <IconButton
              icon="bad"
              class="thumb"
              label={thumb === "down" ? t("badTakeBack") : t("bad")}
              pressed={thumb === "down"}
              onClick={() => press("down")}
            />
          </fieldset>
        )}
        {children}
        {preferred && <span class="preferred">{t("preferredThis")}</span>}
        {thumb && !more && (
          <button type="button" class="button small plain" aria-expanded={false} onClick={() => setMore(true)}>
            {t("more")}
          </button>
        )}
        {waiting && (
          <span class="waiting" title={t("waiting")}>
            <Icon name="waiting" size={14} />
            <span class="visually-hidden">{t("waiting")}</span>
          </span>
        )}
      </div>
      {reply.refused && (
        <p class="problem" role="alert">
          {t("voteRefused", { message: reply.refused })}
        </p>
      )}
      {thumb && more && <More conversation={conversation} reply={reply} thumb={thumb} onClose={close} />}
    </>
  );
}

type MoreProps = { conversation: string; reply: Reply; thumb: Thumb; onClose: () => void };

/** Of what the thumb is, and why: both optional, both saved as soon as they are given. */
function More({ conversation, reply, thumb, onClose }: MoreProps) {
  const kept = opinion(reply.opinions).comment;
  const [comment, setComment] = useState(kept);
  const id = useId();
  const panel = useRef<HTMLElement>(null);
  useEffect(() => panel.current?.scrollIntoView({ block: "nearest" }), []);
  const save = () => {
    const words = comment.trim();
    if (words !== kept) {
      think(conversation, reply.id, (before) => withOpinion(before, "", { comment: words }));
      announce(t("voted"));
    }
    onClose();
  };
  return (
    <section ref={panel} class="more" aria-label={t("more")}>
      <header>
        <h3>
          {thumb === "up" ? t("whatGood") : t("whatBad")} <span class="hint">({t("optional")})</span>
        </h3>
        <IconButton icon="close" size={16} label={t("close")} onClick={onClose} />
      </header>
      {aspects.value.length > 1 && (
        <div class="chips">
          {aspects.value.slice(1).map((aspect) => (
            <button
              type="button"
              key={aspect}
              class="chip"
              aria-pressed={opinion(reply.opinions, aspect).thumb === thumb}
              onClick={() => think(conversation, reply.id, (before) => aspectPressed(before, aspect))}
            >
              {named("aspect", aspect)}
            </button>
          ))}
        </div>
      )}
      <form
        class="comment"
        onSubmit={(event) => {
          event.preventDefault();
          save();
        }}
      >
        <label class="visually-hidden" for={id}>
          {t("comment")}
        </label>
        <input
          id={id}
          type="text"
          maxLength={1000}
          value={comment}
          placeholder={t("commentPlaceholder")}
          onInput={(event) => setComment(event.currentTarget.value)}
        />
        <button type="submit" class="button small">
          {t("saveComment")}
        </button>
      </form>
    </section>
  );
}

function CopyButton({ text }: { text: string }) {
  const [copied, setCopied] = useState(false);
  return (
    <IconButton
      icon={copied ? "check" : "copy"}
      label={copied ? t("copied") : t("copy")}
      onClick={() =>
        void navigator.clipboard.writeText(text).then(() => {
          setCopied(true);
          announce(t("copied"));
          setTimeout(() => setCopied(false), 1500);
        })
      }
    />
  );
}
