// Buttons have no room for a sentence of their own, so it is shown when one rests on them.
const TOOLTIPS = {
    'run': 'Answer the prompt once for every arm, side by side (Ctrl+Enter)',
    'stop': 'End the answers at their next token; what is written stays',
    'replay': 'Play this recorded run at reading speed; needs no model',
    'pin': 'Keep these answers on the page to compare them with the next run',
    'unpin': 'Take the pinned answers away',
    'layers-read': 'Show where every token of the prompt lies at every layer, without an answer',
    'reset': 'Set every control back, but leave the prompt as it is',
    'back-to-shipped': 'Steer with the directions that came with the model again',
    'share-link': 'Copy a link that opens this page with the present settings',
    'share-python': 'Copy a program that gives the answers that Run gives',
    'share-command': 'Copy a command for a terminal that gives the answers that Run gives',
    'share-download': 'Save prompt, settings, answers and coordinates of this run',
    'lab-fit': 'Read the prompts and compute the directions, then choose a layer',
    'lab-stop': 'End the work; what was read is kept if it is enough',
    'lab-use': 'Let Compare steer with these directions',
    'lab-measure': 'Compute which coordinates ACE reaches at the block that is looked at',
    'lab-measure-stop': 'End the measurement; known tables stay',
    'lab-keep': 'Keep these directions to compare another fit with them',
    'lab-harmful-load': 'Fetch this prompt set from the hub',
    'lab-harmless-load': 'Fetch this prompt set from the hub',
    'lab-vectors': 'Save the class means and all that is known about them, in the format of this project',
    'lab-gguf': 'Save a control vector for llama.cpp; it carries activation addition only',
    'lab-card': 'Save what these directions are, as text',
    'sweep-start': 'Run every prompt under every method and coefficient',
    'sweep-stop': 'End the sweep; what is done is kept',
    'sweep-resume': 'Go on where the sweep was stopped',
    'sweep-results': 'Save every prompt, condition and answer, one a line',
    'sweep-summary': 'Save the rates and intervals of every condition as a table',
    'sweep-report': 'Save a report with the figures, to open in a browser',
};

for (const kind of ['pointerover', 'focusin']) {
    document.addEventListener(kind, ({ target }) => {
        const button = target.closest?.('button[id]');
        const words = button && TOOLTIPS[button.id];
        if (words && !button.title) button.title = words;
    });
}
