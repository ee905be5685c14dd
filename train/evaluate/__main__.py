"""`octograin evaluate RUN`; every simulator process imports this module, so it is light."""

if __name__ == "__main__":
    from train.evaluate.evaluate_command import main

    main()
