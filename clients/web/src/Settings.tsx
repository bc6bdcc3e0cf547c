import { signal } from "@preact/signals";
import { useId } from "preact/hooks";
import { outbox } from "./chat/votes.ts";
import { keyWanted } from "./connection.ts";
import { t } from "./i18n.ts";
import { apiKey, type Language, language, singleKeys, type Theme, theme } from "./preferences.ts";
import { SHORTCUTS } from "./shortcuts.ts";
import { Dialog } from "./ui/Dialog.tsx";

export const settingsOpen = signal(false);

const THEMES: Theme[] = ["auto", "light", "dark"];
const LANGUAGES: [Language, string][] = [
  ["en", "English"],
  ["zh", "中文"],
];

type ChoiceProps<T extends string> = {
  label: string;
  options: [T, string][];
  value: T;
  onChange: (value: T) => void;
};

/** One of a few, as radio buttons in a row. */
function Choice<T extends string>({ label, options, value, onChange }: ChoiceProps<T>) {
  const name = useId();
  return (
    <fieldset class="choice">
      <legend>{label}</legend>
      <div class="segments">
        {options.map(([option, words]) => (
          <label key={option} lang={option === "zh" ? "zh-Hans" : undefined}>
            <input type="radio" name={name} checked={option === value} onChange={() => onChange(option)} />
            <span>{words}</span>
          </label>
        ))}
      </div>
    </fieldset>
  );
}

export function Settings() {
  const keyId = useId();
  const hintId = useId();
  const close = () => {
    settingsOpen.value = false;
    keyWanted.value = false;
    void outbox.flush();
  };
  return (
    <Dialog title={t("settings")} onClose={close} class="settings">
      <Choice
        label={t("appearance")}
        options={THEMES.map((name) => [name, t(`theme.${name}`)])}
        value={theme.value}
        onChange={(chosen) => {
          theme.value = chosen;
        }}
      />
      <Choice
        label={t("language")}
        options={LANGUAGES}
        value={language.value}
        onChange={(chosen) => {
          language.value = chosen;
        }}
      />
      <form
        class="field"
        onSubmit={(event) => {
          event.preventDefault();
          close();
        }}
      >
        <label for={keyId}>{t("apiKey")}</label>
        <input
          id={keyId}
          type="password"
          autocomplete="off"
          spellcheck={false}
          aria-describedby={hintId}
          value={apiKey.value}
          onInput={(event) => {
            apiKey.value = event.currentTarget.value.trim();
          }}
        />
        <p id={hintId} class="hint">
          {t("apiKeyHint")}
        </p>
      </form>
      <section class="keys" aria-label={t("keys")}>
        <h3>{t("keys")}</h3>
        <dl>
          {SHORTCUTS.map(({ name, keys, single }) => (
            <div key={name} class={single && !singleKeys.value ? "off" : ""}>
              <dt>{t(`key.${name}`)}</dt>
              <dd>
                {keys.map((key) => (
                  <kbd key={key}>{key}</kbd>
                ))}
              </dd>
            </div>
          ))}
        </dl>
        <label class="check">
          <input
            type="checkbox"
            checked={singleKeys.value}
            onChange={(event) => {
              singleKeys.value = event.currentTarget.checked;
            }}
          />
          {t("singleKeys")}
        </label>
      </section>
      <p class="hint">
        <a href="/licenses.txt" target="_blank" rel="noopener">
          {t("licences")}
        </a>
      </p>
    </Dialog>
  );
}
