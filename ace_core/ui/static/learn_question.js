const { step, choices } = JSON.parse(props.value);
const form = element.querySelector('.ace-question');
const why = form.querySelector('[data-slot="why"]');

form.addEventListener('change', (event) => {
    const choice = choices[Number(event.target.value)];
    if (!choice) return;
    why.textContent = choice.why;
    why.dataset.right = String(choice.right);
    for (const label of form.querySelectorAll('label')) delete label.dataset.right;
    event.target.closest('label').dataset.right = String(choice.right);
    if (choice.right) document.dispatchEvent(new CustomEvent('ace-lesson-done', { detail: step }));
});
