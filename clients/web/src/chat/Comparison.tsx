import { t } from "../i18n.ts";
import { COMPOSER } from "../shortcuts.ts";
import { announce } from "../ui/announce.tsx";
import { Icon } from "../ui/Icon.tsx";
import type { Turn } from "./model.ts";
import { ReplyText, Version } from "./ReplyView.tsx";
import { prefer } from "./votes.ts";

type Props = { conversation: string; turn: Turn; pair: [string, string] };

/** Two replies to the same question, and which was better. */
export function Comparison({ conversation, turn, pair }: Props) {
  const replies = pair.flatMap((id) => turn.replies.find((reply) => reply.id === id) ?? []);
  const ready = replies.every(({ state }) => state !== "streaming");
  const choose = (better: string | null) => {
    prefer(conversation, turn.id, better);
    if (better) announce(t("voted"));
    document.getElementById(COMPOSER)?.focus(); // the button that had the focus is gone
  };
  return (
    <section class="comparison" aria-label={t("whichBetter")}>
      <div class="pair">
        {replies.map((reply, index) => (
          <div class="candidate" key={reply.id}>
            <h2>
              {index === 0 ? t("first") : t("second")}
              <Version reply={reply} />
            </h2>
            <ReplyText reply={reply} />
            {reply.state === "stopped" && <p class="aside">{t("stopped")}</p>}
            {ready && (
              <button type="button" class="button better" onClick={() => choose(reply.id)}>
                <Icon name="check" size={16} />
                {t("thisBetter")}
                <span class="visually-hidden">{index === 0 ? t("first") : t("second")}</span>
              </button>
            )}
          </div>
        ))}
      </div>
      {ready && (
        <p class="undecided">
          {t("whichBetter")}
          <button type="button" class="button small plain" onClick={() => choose(null)}>
            {t("cannotSay")}
          </button>
        </p>
      )}
    </section>
  );
}
