"""`octograin evaluate RUN`; every simulator process imports this module, so it is light."""

if __name__ == "__main__":
    from train.evaluate.command import main

    main()
