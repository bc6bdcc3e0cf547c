import { t } from "../i18n.ts";
import { IconButton } from "../ui/IconButton.tsx";
import { Comparison } from "./Comparison.tsx";
import { update } from "./conversations.ts";
import { chosenReply, type Reply, type Turn, withTurn } from "./model.ts";
import { ReplyProblem, ReplyText, Version } from "./ReplyView.tsx";
import { regenerate } from "./talk.ts";
import { VoteBar } from "./VoteBar.tsx";

type Props = { conversation: string; turn: Turn; last: boolean; streaming: boolean };

/** What the person said, and the reply, or the two that are to be compared. */
export function TurnView({ conversation, turn, last, streaming }: Props) {
  const reply = chosenReply(turn);
  return (
    <article class="turn">
      <div class="said">
        <h2 class="visually-hidden">{t("you")}</h2>
        <p class="said-text">{turn.user}</p>
      </div>
      {turn.comparing ? (
        <Comparison conversation={conversation} turn={turn} pair={turn.comparing} />
      ) : (
        reply && (
          <div class="reply">
            <h2 class="visually-hidden">{reply.version ? t("replyFrom", { version: reply.version }) : t("reply")}</h2>
            <ReplyText reply={reply} />
            <ReplyProblem conversation={conversation} reply={reply} last={last} />
            {reply.state !== "streaming" && (
              <VoteBar conversation={conversation} reply={reply} preferred={turn.preferred === reply.id}>
                {last && !streaming && reply.state !== "failed" && (
                  <IconButton icon="again" label={t("regenerate")} onClick={() => regenerate(conversation)} />
                )}
                {last && turn.replies.length > 1 && <Pager conversation={conversation} turn={turn} reply={reply} />}
                <Version reply={reply} />
              </VoteBar>
            )}
            {reply.state === "streaming" && (
              <div class="bar">
                <Version reply={reply} />
              </div>
            )}
          </div>
        )
      )}
    </article>
  );
}

/** Goes through the replies to the last question; the conversation goes on with the one that is shown. */
function Pager({ conversation, turn, reply }: { conversation: string; turn: Turn; reply: Reply }) {
  const index = turn.replies.indexOf(reply);
  const show = (id: string | undefined) => {
    if (id) update(conversation, (now) => withTurn(now, turn.id, (its) => ({ ...its, chosen: id })));
  };
  const compared = turn.replies.filter(({ state, text }) => state !== "failed" && text).slice(-2);
  const compare = () => {
    const [first, second] = compared;
    if (!first || !second) return;
    update(conversation, (now) =>
      withTurn(now, turn.id, (its) => ({ ...its, comparing: [first.id, second.id], preferred: "" })),
    );
  };
  return (
    <fieldset class="pager" aria-label={t("otherReplies")}>
      <IconButton
        icon="left"
        label={t("previousReply")}
        disabled={index <= 0}
        onClick={() => show(turn.replies[index - 1]?.id)}
      />
      <span class="pager-count">
        <span aria-hidden="true">
          {index + 1} / {turn.replies.length}
        </span>
        <span class="visually-hidden">{t("replyOf", { number: index + 1, count: turn.replies.length })}</span>
      </span>
      <IconButton
        icon="right"
        label={t("nextReply")}
        disabled={index >= turn.replies.length - 1}
        onClick={() => show(turn.replies[index + 1]?.id)}
      />
      {compared.length === 2 && (
        <button type="button" class="button small plain" onClick={compare}>
          {t("compareAgain")}
        </button>
      )}
    </fieldset>
  );
}
